"""A tiny Qwen3-ASR base: random weights and a tokenizer learnt on the spot, in the layout of the real ones.

Small enough to learn a dozen words on one CPU thread in a minute; every line of code that trains, saves and
serves it is the one that does so for the real model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspi.families.qwen3_backend import backend
from caspi.files import digest, write_json

if TYPE_CHECKING:
    import torch

VOCABULARY = 512
"""Rows of the embedding, more than any tokenizer learnt here fills: parameter counts depend on nothing learnt."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>")
TEXT_TAG = "<asr_text>"

# How Qwen cuts text before it merges bytes (tokenizer.json of the Qwen models).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_PREPROCESSOR = {
    "chunk_length": 30,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480_000,
    "nb_max_frames": 3_000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "Qwen3ASRProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16_000,
}

_CHAT = (
    "{%- set turns = namespace(system='') -%}"
    "{%- for message in messages if message.role == 'system' -%}"
    "{%- if message.content is string -%}{%- set turns.system = turns.system + message.content -%}"
    "{%- else -%}{%- for part in message.content if part.type == 'text' -%}"
    "{%- set turns.system = turns.system + part.text -%}{%- endfor -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{ '<|im_start|>system\\n' + turns.system + '<|im_end|>\\n<|im_start|>user\\n' }}"
    "{%- for message in messages if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'audio' -%}"
    "{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{%- endfor -%}{%- endfor -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def make(folder: Path, texts: Sequence[str], language: str, context: str, seed: int) -> Path:
    """Make the base under `folder`, or find it there: the same arguments give the same bytes."""
    words = _words(texts, language, context)
    made = folder / f"tiny-{digest([config_values(), words, seed])[:12]}"
    if made.is_dir():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=".tiny-"))
    try:
        _write(work, words, seed)
        work.chmod(0o755)
        work.rename(made)
    except OSError:
        if not made.is_dir():  # another process may have been first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _words(texts: Sequence[str], language: str, context: str) -> list[str]:
    """What the tokenizer learns from: the prompt's own words too, often enough to become single tokens."""
    prompt = f"system user assistant language {language} {context}"
    return [*sorted(texts), *[prompt] * max(2, len(texts))]


def config_values(ids: dict[str, int] | None = None) -> dict[str, Any]:
    """The tiny model's config.json; `ids` are the tokenizer's (without them it is good for counting only)."""
    ids = ids or dict.fromkeys((*SPECIAL, TEXT_TAG), 0)
    return {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "dtype": "float32",
        "thinker_config": {
            "model_type": "qwen3_asr",
            "audio_token_id": ids["<|audio_pad|>"],
            "audio_start_token_id": ids["<|audio_start|>"],
            "audio_end_token_id": ids["<|audio_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "audio_config": {
                "num_mel_bins": 80,
                "downsample_hidden_size": 32,
                "d_model": 96,
                "encoder_layers": 2,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 192,
                "output_dim": 96,
                "n_window": 50,
                "n_window_infer": 800,
            },
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 24,
                "max_position_embeddings": 4096,
                "rope_theta": 10_000.0,
                "rope_scaling": {"rope_type": "default", "mrope_section": [4, 4, 4], "mrope_interleaved": True},
                "tie_word_embeddings": True,
            },
        },
    }


def _write(folder: Path, words: Sequence[str], seed: int) -> None:
    tokenizer = _tokenizer(words)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*SPECIAL, TEXT_TAG)}
    assert max(ids.values()) < VOCABULARY
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    write_json(folder / "chat_template.json", {"chat_template": _CHAT})
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": ends, "pad_token_id": ids["<|endoftext|>"]},
    )
    config = config_values(ids)
    write_json(folder / "config.json", config)
    _write_weights(folder / "model.safetensors", config, seed)


def _tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import AddedToken
    from transformers import Qwen2TokenizerFast

    kind: Any = Qwen2TokenizerFast
    tokenizer = kind(
        tokenizer_object=_learn(words),
        unk_token=None,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.add_tokens([AddedToken(TEXT_TAG, normalized=False, special=False)])
    return tokenizer


def _learn(words: Sequence[str]) -> Any:
    """Byte-level BPE: no text is unknown to it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.NFC()
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    learnt.train_from_iterator(words, trainer)
    return learnt


def _write_weights(path: Path, config: dict[str, Any], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    classes = backend()
    network = classes.Qwen3ASRForConditionalGeneration(classes.Qwen3ASRConfig(**config))
    with torch.no_grad():
        _initialise(network, torch.Generator().manual_seed(seed))
    tensors = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    save_file(tensors, path, metadata={"format": "pt"})


def _initialise(network: torch.nn.Module, random: torch.Generator) -> None:
    """Scales at which so small a model learns; with the package's normal(0, 0.02) it does not."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=random)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight, generator=random)
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            module.bias.zero_()
    for module in network.modules():  # last: the head is tied to it
        if isinstance(module, torch.nn.Embedding):
            module.weight.normal_(std=module.embedding_dim**-0.5, generator=random)
