"""What is known of the upstream fine-tuning script of Qwen3-ASR and of the others that people come from."""

from __future__ import annotations

from collections.abc import Mapping

SCRIPT = "qwen3_asr_sft.py"

OTHERS = {
    "train_round2_gradual.py": "its settings are in its code, not in its command; the round that it was to run ships "
    "corrected as rounds/hebrew-r2.yaml: start from a copy of that",
    "train_hebrew_asr_enhanced.py": "its settings are in its code, not in its command; the round that it was to run "
    "ships corrected as rounds/hebrew-r2.yaml: start from a copy of that",
    "train-cv.py": "its settings are in its code, not in its command; the round that it was to run ships corrected as "
    "rounds/commonvoice-wav2vec2.yaml: start from a copy of that",
    "training-cv.py": "its settings are in its code, not in its command; the round that it was to run ships corrected "
    "as rounds/commonvoice-wav2vec2.yaml: start from a copy of that",
    "train_nemo_optimized.sh": "it trains with NeMo, and Caspi has no NeMo family; `family: ctc` trains Parakeet and "
    "other FastConformer models with a CTC head",
}
"""Scripts that people come from whose command says nothing that could be converted."""

DEFAULTS: Mapping[str, str] = {
    "model_path": "Qwen/Qwen3-ASR-1.7B",
    "train_file": "train.jsonl",
    "eval_file": "",
    "sr": "16000",
    "batch_size": "32",
    "grad_acc": "4",
    "lr": "2e-5",
    "epochs": "1",
    "lr_scheduler_type": "linear",
    "warmup_ratio": "0.02",
    "num_workers": "4",
    "save_strategy": "steps",
    "save_steps": "200",
    "save_total_limit": "5",
}
"""What the script takes where the command is silent."""

MEANINGLESS = {
    "output_dir": "everything of a round lies in its directory under runs/",
    "log_steps": "every step is logged",
    "pin_memory": "the engine decides",
    "persistent_workers": "the engine decides",
    "prefetch_factor": "the engine decides",
    "resume": "the same command goes on where it was",
    "resume_from": "the same command goes on where it was",
}
"""Options that need no counterpart."""

PINNED = {"Qwen/Qwen3-ASR-1.7B": "7278e1e70fe206f11671096ffdd38061171dd6e5"}
SHAPES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
AUTHORS_RATE = 2e-5
