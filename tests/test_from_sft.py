"""`caspi init --from-sft`: the command of the upstream script becomes the round that means the same, corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from caspi.corpus.roots import roots
from caspi.corpus.sources import rows, shards
from caspi.errors import UserError
from caspi.plan import make_plan
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round
from caspi.starter import Converted, write_from_sft
from caspi.starter.shell import read_launch
from caspi.starter.upstream import DEFAULTS, MEANINGLESS
from tests.command import caspi

DATA = "--train_file data/train.jsonl --eval_file data/val.jsonl"
PLAIN = f"python qwen3_asr_sft.py --model_path Qwen/Qwen3-ASR-1.7B {DATA}"

SEED = """\
# 2. Start training
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
python prepare_qwen_data.py

nohup torchrun --nproc_per_node=8 qwen3_asr_sft.py \\
  --model_path Qwen/Qwen3-ASR-1.7B \\
  --train_file ./qwen3_asr_data/train.jsonl \\
  --eval_file ./qwen3_asr_data/val.jsonl \\
  --output_dir ./qwen3-asr-hebrew \\
  --batch_size 2 \\                    # Per-GPU batch size
  --grad_acc 16 \\                     # Gradient accumulation steps
  --lr 2e-4 \\                         # Learning rate (2e-4)
  --epochs 3 \\
  --log_steps 50 \\
  --save_strategy steps \\
  --save_steps 500 \\                  # it's 500
  --save_total_limit 3 \\
  --num_workers 2 \\
  --pin_memory 1 --persistent_workers 1 \\
  --prefetch_factor 2 > training.log 2>&1 &
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caspi.starter.from_sft.gpus_here", lambda: None)


def converted(folder: Path, command: str, language: str | None = None) -> tuple[RoundSpec, ClusterSpec, Converted]:
    done = write_from_sft(folder, "mine", command, language, folder)
    return load_round(done.files[0]), load_cluster(done.files[1]), done


def test_the_command_of_the_seed_becomes_its_round(tmp_path: Path) -> None:
    spec, cluster, done = converted(tmp_path, SEED)
    assert (cluster.nodes, cluster.gpus_per_node, cluster.workers) == (1, 8, 2)
    assert spec.train.global_batch == 2 * 16 * 8
    assert [(p.epochs, p.rates) for p in spec.train.phases] == [(3, {"all": 2e-5})]
    assert (spec.train.schedule.shape, spec.train.optimizer.weight_decay) == ("linear", 0.0)
    assert spec.train.optimizer.betas == (0.9, 0.999)
    assert (spec.train.keep.every_steps, spec.train.keep.last, spec.train.keep.best) == (500, 2, 1)
    assert spec.train.evaluate.every_steps == 500
    assert spec.model.base == "Qwen/Qwen3-ASR-1.7B"
    assert spec.data.sources[0].path == "../qwen3_asr_data/train.jsonl"
    assert [(one.name, one.path) for one in spec.benchmark.sets] == [("val", "../qwen3_asr_data/val.jsonl")]
    assert make_plan(spec, cluster).parameters == 2_038_052_480
    said = "\n".join(done.notes)
    for what in (
        "128 times too large (grad_acc 16 x 8 processes)",
        "10 times the rate of the authors",
        "after 4 lines a backslash is followed by a comment",
        "pads on the left",
        "bf16 alone",
        "of 8 rows a batch whatever batch_size says",
        "do not load",
        "it is the test set",
        "--log_steps (every step is logged)",
        "PYTORCH_CUDA_ALLOC_CONF of the environment",
    ):
        assert what in said
    written = " ".join(done.files[0].read_text("utf-8").replace("#", " ").split())
    for note in done.notes:
        assert " ".join(note.replace("#", " ").split()) in written


LAUNCHES: list[tuple[str, int, int, int, int]] = [
    # command, nodes, GPUs a node, CPU processes, global batch
    (f"{PLAIN} --batch_size 2 --grad_acc 16", 1, 1, 1, 32),
    (PLAIN, 1, 1, 1, 128),
    (f"CUDA_VISIBLE_DEVICES=0,1 OMP_NUM_THREADS=4 {PLAIN} --batch_size=2 --grad_acc=3", 1, 2, 1, 12),
    (f"CUDA_VISIBLE_DEVICES=3 {PLAIN} --batch_size 2 --grad_acc 3", 1, 1, 1, 6),
    (f"CUDA_VISIBLE_DEVICES= {PLAIN} --batch_size 2 --grad_acc 3", 1, 0, 1, 6),
    (f"env CUDA_VISIBLE_DEVICES=GPU-aa,GPU-bb uv run {PLAIN} --batch_size 1 --grad_acc 1", 1, 2, 1, 2),
    (PLAIN.replace("python", "torchrun --nnodes 2 --nproc-per-node 4 --rdzv_backend c10d"), 2, 4, 1, 1024),
    (PLAIN.replace("python", "torchrun --nnodes=1:3 --nproc_per_node 1 --standalone"), 3, 1, 1, 384),
    (PLAIN.replace("python", "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=gpu"), 1, 2, 1, 256),
    (PLAIN.replace("python", "python3 -m torch.distributed.run --nproc_per_node 2"), 1, 2, 1, 256),
    (PLAIN.replace("python", "accelerate launch --num_processes 8 --num_machines 2"), 2, 4, 1, 1024),
    (PLAIN.replace("python", "CUDA_VISIBLE_DEVICES=-1 torchrun --nproc_per_node 2"), 1, 0, 2, 256),
    (f"N=2; torchrun --nproc_per_node=$N /opt/x/qwen3_asr_sft.py {DATA} | tee log", 1, 2, 1, 256),
    (f"nohup {PLAIN} --batch_size 4 --grad_acc 2 >log 2>&1 </dev/null &", 1, 1, 1, 8),
    (f"{PLAIN} --epochs 3 > log", 1, 1, 1, 128),
    (f"{PLAIN} \\\r\n  --batch_size 4 \\\r\n  --grad_acc 2", 1, 1, 1, 8),
]


@pytest.mark.parametrize(("command", "nodes", "gpus", "processes", "batch"), LAUNCHES)
def test_launchers(tmp_path: Path, command: str, nodes: int, gpus: int, processes: int, batch: int) -> None:
    spec, cluster, _ = converted(tmp_path, command)
    assert (cluster.nodes, cluster.gpus_per_node, cluster.processes_per_node) == (nodes, gpus, processes)
    assert spec.train.global_batch == batch


def test_a_comment_after_a_backslash_is_read_as_it_was_meant() -> None:
    """The same command with and without comments; the shell's own reading would stop at the first."""
    commented = read_launch(SEED, "qwen3_asr_sft.py")
    lines = [line.split("  #")[0].rstrip() for line in SEED.split("\n")]
    plain = read_launch("\n".join(lines), "qwen3_asr_sft.py")
    assert (commented.broken_lines, plain.broken_lines) == (4, 0)
    assert commented.options == plain.options
    assert commented.options["lr"] == "2e-4"
    assert commented.stray == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--lr 1e-5", {"rate": 1e-5}),
        ("--lr 4e-5", {"rate": 4e-5}),
        ("--lr 5e-5", {"rate": 2e-5, "says": "2.5 times the rate"}),
        ("--epochs 0.5", {"epochs": 1, "says": "0.5 epochs"}),
        ("--lr_scheduler_type cosine", {"shape": "cosine"}),
        ("--lr_scheduler_type constant_with_warmup", {"shape": "constant"}),
        ("--save_strategy no", {"every": 500, "says": "save_strategy no"}),
        ("--save_steps 40", {"every": 40}),
        ("--batch_size 1 --grad_acc 1", {"silent": "times too large"}),
        ("--batch_size 1 --grad_acc 1", {"silent": "pads on the left"}),
        ("--model_path ./mine/model", {"base": "./mine/model"}),
        ("--model_path Qwen/Qwen3-ASR-0.6B", {"says": "`main` moves"}),
    ],
)
def test_options(tmp_path: Path, options: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec, _, done = converted(tmp_path, f"{PLAIN} {options}")
    said = "\n".join(done.notes)
    found = {
        "rate": spec.train.phases[0].rates["all"],
        "epochs": spec.train.phases[0].epochs,
        "shape": spec.train.schedule.shape,
        "every": spec.train.keep.every_steps,
        "base": spec.model.base,
    }
    assert expected.pop("says", "") in said
    assert expected.pop("silent", "never said") not in said
    assert {name: found[name] for name in expected} == expected


REFUSED = [
    ("python other.py --lr 1", "no command there starts qwen3_asr_sft.py; it has other.py"),
    (f"{PLAIN} --learning_rate 1e-5", "qwen3_asr_sft.py has no --learning_rate"),
    (f"{PLAIN} --batchsize 2", "did you mean --batch_size?"),
    (f"{PLAIN} --hub_token hf_planted --fp16", "has no --fp16, --hub_token"),
    (f"{PLAIN} --lr", "--lr: its value is missing"),
    (f"{PLAIN} --lr fast", "--lr: a number from"),
    (f"{PLAIN} --batch_size 0", "--batch_size: a number from 1"),
    (f"{PLAIN} --lr $LR", "--lr: holds a shell variable"),
    (f"{PLAIN} --sr 8000", "--sr: Qwen3-ASR hears 16,000"),
    (f"{PLAIN} --lr_scheduler_type polynomial", "--lr_scheduler_type: there is no such shape"),
    (f"{PLAIN} too many", "2 words of the command belong to no option"),
    (f"{PLAIN} --eval_file data/train.jsonl", "--eval_file: it is the training file"),
    (f"{PLAIN} --train_file data/*.jsonl", "--train_file: give one local file"),
    (f"{PLAIN} --train_file data/train.json", "Caspi reads JSON lines from files called *.jsonl"),
    (f"{PLAIN}\n{PLAIN}", "qwen3_asr_sft.py is started 2 times"),
    (f"srun -n 8 {PLAIN}", "srun is not understood"),
    (f"{PLAIN} --lr '2e-5", "a quote is open"),
    (PLAIN.replace("python", "torchrun --nproc_per_node=gpu"), "write --nproc_per_node=N"),
    (PLAIN.replace("python", "CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node=2"), "CUDA_VISIBLE_DEVICES shows 1"),
    ("torchrun --nproc_per_node=8 train_round2_gradual.py", "ships corrected as rounds/hebrew-r2.yaml"),
    ("python train-cv.py", "ships corrected as rounds/commonvoice-wav2vec2.yaml"),
    ("bash train_nemo_optimized.sh", "Caspi has no NeMo family"),
]


@pytest.mark.parametrize(("command", "says"), REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(tmp_path: Path, command: str, says: str) -> None:
    done = caspi("init", "mine", "--folder", str(tmp_path), "--from-sft", command)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert "hf_planted" not in done.err + done.out
    assert not list(tmp_path.rglob("*.yaml"))


def test_secrets_are_said_and_never_written(tmp_path: Path) -> None:
    command = f"export WANDB_API_KEY=wandb_planted\nHF_TOKEN=hf_planted TOKENIZERS_PARALLELISM=false {PLAIN}"
    done = caspi("init", "mine", "--folder", str(tmp_path), "--from-sft", command)
    assert done.code == 0, done.err
    written = done.out + done.err + "".join(p.read_text("utf-8") for p in tmp_path.rglob("*.yaml"))
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        assert f"{name}: its value is written nowhere" in done.out
    assert "planted" not in written
    assert "TOKENIZERS_PARALLELISM of the environment" in done.out
    with pytest.raises(UserError, match="stands in another option too") as refused:
        write_from_sft(tmp_path, "other", f"HF_TOKEN=hf_planted {PLAIN} --model_path ./hf_planted", None, tmp_path)
    assert "planted" not in str(refused.value)


def jsonl(path: Path, lines: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def test_a_list_that_is_here_is_looked_at(tmp_path: Path) -> None:
    """Its language, its prompt, its steps, and the folder above list and audio: the source can be read as written."""
    for number in range(3):
        clip = tmp_path / "wavs" / "a b" / f"{number}.wav"
        clip.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(clip, np.zeros(16_000, dtype=np.float32), 16_000)
    row = {"text": "language Arabic<asr_text>سلام", "prompt": "names: Dana"}
    jsonl(
        tmp_path / "lists" / "train.jsonl",
        [{"audio": str(tmp_path / "wavs" / "a b" / f"{n % 3}.wav"), **row} for n in range(4000)],
    )
    command = "python qwen3_asr_sft.py --train_file lists/train.jsonl --eval_file lists/val.jsonl --epochs 2"
    spec, _, done = converted(tmp_path, f"{command} --batch_size 4 --grad_acc 4")
    assert (spec.model.language, spec.model.context, spec.data.text) == ("Arabic", "names: Dana", "plain-1")
    assert spec.train.schedule.warmup_steps == round(0.02 * 2 * 238)
    assert "# 2.0% of about 476 steps" in done.files[0].read_text("utf-8")
    source = spec.data.sources[0]
    assert source.files == "lists/train.jsonl"
    place = roots(spec, done.files[0].parent, tmp_path, only={"train"})["train"]
    first = next(rows(shards(source, place)[0]))
    assert first.data == tmp_path / "wavs" / "a b" / "0.wav"
    assert first.text == "سلام"


def test_what_a_list_says_against_the_command(tmp_path: Path) -> None:
    command = "cd sub && python qwen3_asr_sft.py --train_file train.jsonl --eval_file val.jsonl"
    audio = tmp_path / "sub" / "clips" / "0.wav"
    audio.parent.mkdir(parents=True)
    audio.write_bytes(b"RIFF")
    listed = tmp_path / "sub" / "train.jsonl"

    def tried(lines: list[dict[str, str]], name: str, language: str | None = None) -> Converted:
        jsonl(listed, lines)
        return write_from_sft(tmp_path, name, command, language, tmp_path)

    good = {"audio": "clips/0.wav", "text": "language Hebrew<asr_text>שלום"}
    with pytest.raises(UserError, match="has English, Hebrew; a round has one language"):
        tried([good, {**good, "text": "language English<asr_text>hi"}], "two")
    with pytest.raises(UserError, match="--language Arabic: the training file says Hebrew"):
        tried([good], "other", "Arabic")
    assert not any("to do: the audio" in note for note in tried([good], "fine").notes)
    none = tried([{**good, "text": "language None<asr_text>שלום"}], "none", "Yiddish")
    assert load_round(none.files[0]).model.language == "Yiddish"
    many = tried([{**good, "prompt": "a"}, {**good, "prompt": "b"}], "many")
    assert any("2 different prompts" in note for note in many.notes)
    listed = tmp_path / "sub" / "lists" / "train.jsonl"
    command = command.replace("train.jsonl", "lists/train.jsonl")
    assert any("to do: the audio paths of train.jsonl" in note for note in tried([good], "misplaced").notes)


def test_without_eval_file_it_could_not_have_run(tmp_path: Path) -> None:
    _, _, done = converted(tmp_path, "python qwen3_asr_sft.py --train_file data/train.jsonl")
    assert any('without eval_file the script ends in an error at once (eval_strategy="steps")' in n for n in done.notes)


def test_the_gpu_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caspi.starter import machine

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB, 40960'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("caspi.starter.from_sft.gpus_here", machine.gpus_here)
    _, cluster, _ = converted(tmp_path, PLAIN)
    assert cluster.gpu is not None
    assert (cluster.gpu.product, cluster.gpu.memory) == ("NVIDIA-A100-SXM4-40GB", 40 * 2**30)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    converted(tmp_path, PLAIN)
    with pytest.raises(UserError, match="is there already"):
        converted(tmp_path, PLAIN)


def test_every_option_of_the_script_has_an_answer() -> None:
    """All that its argparse has: converted, or said to be meaningless here."""
    paths = {"model_path", "train_file", "eval_file", "output_dir", "resume_from"}
    training = {"sr", "batch_size", "grad_acc", "lr", "epochs", "lr_scheduler_type", "warmup_ratio", "log_steps"}
    loading = {"num_workers", "pin_memory", "persistent_workers", "prefetch_factor"}
    saving = {"save_strategy", "save_steps", "save_total_limit", "resume"}
    assert {*DEFAULTS, *MEANINGLESS} == paths | training | loading | saving
