"""Tiny CTC bases: a wav2vec2 and a Parakeet of random weights, with a vocabulary learnt on the spot.

Small enough to learn a dozen words on one CPU thread in minutes; every line of code that trains, saves and serves
them is the one that does so for the real models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspi.families.ctc_backend import backend
from caspi.families.ctc_folder import made_once
from caspi.families.ctc_tokens import characters, write_byte_pairs, write_characters
from caspi.files import write_json
from caspi.spec.models import TINY, TINY_PARAKEET

if TYPE_CHECKING:
    import torch

CHARACTERS = 64
"""Rows of the tiny wav2vec2's head, more than most alphabets fill: parameter counts depend on nothing learnt."""

PIECES = 48
"""Pieces of words that the tiny Parakeet spells with; the blank is one more."""

_WAVEFORM = {
    "do_normalize": True,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "Wav2Vec2Processor",
    "return_attention_mask": True,
    "sampling_rate": 16_000,
}
_MEL = {
    "feature_extractor_type": "ParakeetFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 512,
    "padding_side": "right",
    "padding_value": 0.0,
    "preemphasis": 0.97,
    "processor_class": "ParakeetProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16_000,
    "win_length": 400,
}


def make(base: str, folder: Path, texts: Sequence[str], seed: int) -> Path:
    """Make `tiny` or `tiny-parakeet` under `folder`, or find it there: the same arguments give the same bytes."""
    write = {TINY: _write_wav2vec2, TINY_PARAKEET: _write_parakeet}[base]
    words = sorted(texts)
    return made_once(folder, base, [config_values(base), words, seed], lambda work: write(work, words, seed))


def config_values(base: str, rows: int | None = None) -> dict[str, Any]:
    """config.json of `tiny` or `tiny-parakeet`; `rows` of the head, where the texts needed more than is usual."""
    return _parakeet(rows or PIECES + 1) if base == TINY_PARAKEET else _wav2vec2(rows or CHARACTERS)


def _wav2vec2(rows: int) -> dict[str, Any]:
    return {
        "architectures": ["Wav2Vec2ForCTC"],
        "model_type": "wav2vec2",
        "dtype": "float32",
        "vocab_size": rows,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        # wav2vec2's own first window is 1.25 ms; with twice that so small an encoder learns in a third of the epochs.
        "conv_dim": [64, 64, 128],
        "conv_kernel": [40, 8, 8],
        "conv_stride": [20, 4, 4],
        "feat_extract_activation": "relu",
        "num_feat_extract_layers": 3,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
    }


def _parakeet(rows: int) -> dict[str, Any]:
    return {
        "architectures": ["ParakeetForCTC"],
        "model_type": "parakeet_ctc",
        "dtype": "float32",
        "vocab_size": rows,
        "pad_token_id": rows - 1,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "encoder_config": {
            "model_type": "parakeet_encoder",
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "conv_kernel_size": 9,
            "subsampling_factor": 4,
            "subsampling_conv_channels": 32,
            "num_mel_bins": 80,
            "dropout": 0.0,
            "dropout_positions": 0.0,
            "layerdrop": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            "max_position_embeddings": 5000,
            "scale_input": False,
        },
    }


def _write_wav2vec2(folder: Path, texts: Sequence[str], seed: int) -> None:
    tokens = characters(texts)
    write_characters(folder, tokens)
    _write_model(folder, _wav2vec2(max(CHARACTERS, len(tokens))), _WAVEFORM, seed)


def _write_parakeet(folder: Path, texts: Sequence[str], seed: int) -> None:
    _write_model(folder, _parakeet(write_byte_pairs(folder, texts, PIECES)), _MEL, seed)


def _write_model(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    classes = backend(config["model_type"])
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "config.json", config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # of what `_initialise` leaves as the package made it
        model = classes.AutoModelForCTC.from_config(classes.AutoConfig.from_pretrained(folder, local_files_only=True))
        _initialise(model, torch.Generator().manual_seed(seed))
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _initialise(network: torch.nn.Module, random: torch.Generator) -> None:
    """Scales at which so small a model learns; with the package's normal(0, 0.02) a spectrogram is lost on its way
    through the convolutions."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=random)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight, generator=random)
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            module.bias.zero_()
    for name, parameter in network.named_parameters():
        if name.endswith(("bias_u", "bias_v")):
            parameter.zero_()
