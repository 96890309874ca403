"""A CTC model on disk: the layout of `transformers`, read, checked, written, and given a head for a new vocabulary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.families.ctc_tokens import characters, write_byte_pairs, write_characters
from caspi.families.hub_folder import Layout
from caspi.files import canonical_json, digest, read_json

PARAKEET = "parakeet_ctc"
BACKBONES = {
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "wavlm": "wavlm",
    "wav2vec2-bert": "wav2vec2_bert",
    PARAKEET: "encoder",
}
"""model_type of config.json -> the attribute that holds all but the head."""

PROCESSORS = {"wav2vec2-bert": "Wav2Vec2BertProcessor", PARAKEET: "ParakeetProcessor"}
"""model_type -> its processor in `transformers`; the others' is Wav2Vec2Processor. Bases that were only pre-trained
don't say it, or name one with a language model."""

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Everything but the weights."""

_TOKENIZER = SIDE_FILES[4:]
_PRETRAINING = ("quantizer.", "project_q.", "project_hid.")
"""Weights that only pre-training used."""


def is_ctc(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a model of this family."""
    return config.get("model_type") in BACKBONES


def read_layout(folder: Path, vocabulary: bool = True) -> Layout:
    """Side files of a folder; UserError when it is no model of this family, or lacks a file.

    Without `vocabulary` it need not have a tokenizer: it gets one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a model folder, a repository id, tiny or tiny-parakeet")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; a model folder has one")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not is_ctc(config):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}/config.json: model_type is {kind!r}, and ctc loads {', '.join(BACKBONES)}")
    if config.get("add_adapter"):
        raise UserError(f"{folder}/config.json: add_adapter is true; its convolutions read padding, so ctc has none")
    problems = _missing(folder, vocabulary)
    if problems:
        raise UserError(*problems)
    return Layout(config, {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()})


def with_corpus_vocabulary(base: Path, texts: Sequence[str], seed: int, folder: Path) -> Path:
    """A copy of `base` under `folder` that spells what the texts are written with: new tokenizer, new random head.

    Running it again with the same base and texts is free, and the same bytes.
    """
    layout = read_layout(base, vocabulary=False)
    alphabet = characters(texts)
    pieces = sorted(set(texts)) if layout.config["model_type"] == PARAKEET else []

    def write(work: Path) -> None:
        kept = {name: content for name, content in layout.files.items() if name not in _TOKENIZER}
        config = dict(layout.config)
        preprocessor = read_json(base / "preprocessor_config.json")
        processor = PROCESSORS.get(config["model_type"], "Wav2Vec2Processor")
        kept["preprocessor_config.json"] = canonical_json({**preprocessor, "processor_class": processor})
        if config["model_type"] == PARAKEET:
            # Pieces of words, as many as the base has: a frame of 80 ms holds more than one character.
            config["vocab_size"] = write_byte_pairs(work, texts, int(config["vocab_size"]) - 1)
            config["pad_token_id"] = config["vocab_size"] - 1
        else:
            write_characters(work, alphabet)
            config |= {"vocab_size": len(alphabet), "pad_token_id": 0}
        Layout(config, kept).write(work)
        _write_weights(base, work / "model.safetensors", config, seed)

    return made_once(folder, "corpus", [str(base.resolve()), layout.config, alphabet, pieces, seed], write)


def made_once(folder: Path, kind: str, arguments: object, write: Callable[[Path], None]) -> Path:
    """The folder `folder`/`kind`-DIGEST, written whole or not at all, or found there."""
    made = folder / f"{kind}-{digest(arguments)[:12]}"
    if made.is_dir():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with _unfinished(folder, kind) as work:
        write(work)
        work.chmod(0o755)
        try:
            work.rename(made)
        except OSError:
            if not made.is_dir():  # another process may have been first
                raise
    return made


@contextmanager
def _unfinished(folder: Path, kind: str) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(dir=folder, prefix=f".{kind}-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_weights(base: Path, path: Path, config: Mapping[str, Any], seed: int) -> None:
    """The base's weights without its head and what only pre-training used, and a new head."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(base.glob("*.safetensors")):
            tensors |= load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{base}: the weights do not load ({str(error).splitlines()[0]})") from None
    backbone = BACKBONES[config["model_type"]] + "."
    bare = not any(name.startswith(backbone + "encoder.") for name in tensors) and backbone != "encoder."
    head = "ctc_head" if config["model_type"] == PARAKEET else "lm_head"
    kept = {
        (backbone if bare else "") + name: tensor
        for name, tensor in tensors.items()
        if not name.startswith((f"{head}.", *_PRETRAINING))
    }
    width = (config["encoder_config"] if config["model_type"] == PARAKEET else config)["hidden_size"]
    shape = (config["vocab_size"], width, *([1] if config["model_type"] == PARAKEET else []))
    kept[f"{head}.weight"] = torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    kept[f"{head}.bias"] = torch.zeros(config["vocab_size"])
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, path, metadata={"format": "pt"})


def _missing(folder: Path, vocabulary: bool) -> list[str]:
    has = {name for name in SIDE_FILES if (folder / name).is_file()}
    problems = []
    if "preprocessor_config.json" not in has:
        problems.append(f"{folder}: preprocessor_config.json is missing; copy it from the base model")
    if vocabulary and not {"vocab.json", "tokenizer.json"} & has:
        problems.append(
            f"{folder}: vocab.json (or tokenizer.json) is missing, so nothing says what the head spells; copy it from "
            "the base model, or let the training text say it: vocabulary: corpus"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        why = " (pytorch_model.bin is a pickle, and what it holds may run)" if pickled else ""
        problems.append(
            f"{folder}: *.safetensors is missing{why}; take a revision that has it, or convert the weights once with "
            "transformers: AutoModelForCTC.from_pretrained(...).save_pretrained(...)"
        )
    return problems
