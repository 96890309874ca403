"""The audio encoder of Qwen3-ASR over all clips of a batch at once.

The package runs it clip by clip. Here the clips' chunks go through the convolutions together and their tokens
through the layers as one sequence, in which a clip sees itself alone, in windows of 8 s: what FlashAttention 2
and vLLM compute, and what the package means but leaves out on its other attention paths, where a clip of more
than 8 s sees all of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from caspi.families.light_imports import light_imports

with light_imports():
    from transformers import AttentionInterface

_Length = TypeVar("_Length", int, torch.Tensor)

CHUNK = 100
"""Frames that the convolutions see at once: one second, 13 tokens. Fixed in the package's own length formula."""

CHUNK_TOKENS = 13

CACHED = 8
"""Chunks that a CPU convolves at once: with more, what lies between two convolutions falls out of its caches, and
convolving takes twice as long."""

ATTENTION = "caspi_blocks"
"""The name under which transformers finds `_attend_in_blocks`."""


class Packed(NamedTuple):
    """The clips of a batch as the encoder takes them, with everything that depends on their lengths reckoned by
    whoever packs them: the device is never asked for a number while it computes.

    A block is a stretch of tokens that sees itself alone: a window of a clip.
    """

    chunks: torch.Tensor
    """[chunks of all clips, bins, CHUNK]."""
    widths: torch.Tensor
    """[chunks]: frames of a clip that is shorter than a chunk, CHUNK elsewhere; empty where no clip is so short."""
    heard: torch.Tensor
    """[tokens]: which of the chunks' tokens, [chunks * CHUNK_TOKENS], are not filling."""
    places: torch.Tensor
    """[tokens]: where each stands in the blocks, [blocks * longest]."""
    seen: torch.Tensor
    """[blocks, longest]: False on filling."""


def pack(features: Sequence[npt.NDArray[np.float32]], window: int) -> Packed:
    """Clips of [bins, frames] each, for an encoder whose tokens see at most `window` chunks."""
    frames = [each.shape[1] for each in features]
    tokens = np.array([audio_tokens(length) for length in frames])
    within = _counted(tokens)  # its place in its clip, for each token
    first_chunk = np.repeat(_starts(np.array([_chunks_of(length) for length in frames])), tokens)
    # Every chunk but a clip's last is full, so tokens lie without a gap from the clip's first chunk on.
    heard = first_chunk * CHUNK_TOKENS + within

    longest = window * CHUNK_TOKENS
    first_block = np.repeat(_starts(-(-tokens // longest)), tokens)
    lengths = np.bincount(first_block + within // longest)
    widest = int(lengths.max())
    places = (first_block + within // longest) * widest + within % longest
    short = min(frames) < CHUNK
    widths = [min(length, CHUNK) for length in frames for _ in range(_chunks_of(length))] if short else []
    return Packed(
        torch.from_numpy(_cut(features)),
        torch.tensor(widths, dtype=torch.long),
        torch.from_numpy(heard),
        torch.from_numpy(places),
        torch.from_numpy(np.arange(widest) < lengths[:, None]),
    )


def audio_tokens(frames: int) -> int:
    """Tokens that the encoder makes of so many frames."""
    return frames // CHUNK * 13 + _halved(_halved(_halved(frames % CHUNK)))


def encode(tower: Any, packed: Packed) -> torch.Tensor:
    """[tokens of all clips, width of the language model], clip after clip."""
    hidden = _convolve(tower, packed.chunks, packed.widths)
    hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
    hidden = hidden.flatten(0, 1).index_select(0, packed.heard)
    tower.config._attn_implementation = ATTENTION
    for layer in tower.layers:
        # The package's own description of the windows, which nothing here reads, must still be some tensor.
        hidden = layer(hidden, packed.places, places=packed.places, seen=packed.seen)[0]
    projected: torch.Tensor = tower.proj2(tower.act(tower.proj1(tower.ln_post(hidden))))
    return projected


def window_of(tower: Any) -> int:
    """Chunks that a token of this encoder sees at most."""
    assert tower.n_window * 2 == CHUNK, "the package's length formula knows no other chunk"
    return int(tower.n_window_infer // CHUNK)


def _attend_in_blocks(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    places: torch.Tensor,
    seen: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; [1, heads, tokens, width] each, the result [1, tokens, heads, width]."""
    blocks, longest = seen.shape

    def spread(each: torch.Tensor) -> torch.Tensor:
        tokens = each[0].transpose(0, 1)
        rows = tokens.new_zeros(blocks * longest, *tokens.shape[1:]).index_copy(0, places, tokens)
        return rows.view(blocks, longest, *tokens.shape[1:]).transpose(1, 2)

    out = functional.scaled_dot_product_attention(
        spread(query), spread(key), spread(value), attn_mask=seen[:, None, None], scale=scaling
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, places).unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attend_in_blocks)


def _convolve(tower: Any, chunks: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """[chunks, CHUNK_TOKENS, width]."""
    portion = CACHED if chunks.device.type == "cpu" else tower.conv_chunksize
    parts = [
        _convolve_some(tower, some, widths[start : start + len(some)]) for start, some in _portions(chunks, portion)
    ]
    hidden = torch.cat(parts) if len(parts) > 1 else parts[0]
    out: torch.Tensor = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    return out


def _convolve_some(tower: Any, chunks: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    hidden = functional.gelu(tower.conv2d1(chunks.unsqueeze(1)))
    for convolution in (tower.conv2d2, tower.conv2d3):
        if len(widths):
            # The package fills up the last chunk of a clip, but not the only chunk of a clip under one second: for
            # that one, what lies behind the end must stay the zeros that a convolution sees behind its input.
            widths = _halved(widths)
            behind = torch.arange(hidden.shape[-1], device=hidden.device) >= widths[:, None]
            hidden = hidden.masked_fill(behind[:, None, None], 0)
        hidden = functional.gelu(convolution(hidden))
    return hidden


def _portions(chunked: torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Chunks in portions: the convolutions' outputs are the largest tensors of the encoder."""
    for start in range(0, len(chunked), size):
        yield start, chunked[start : start + size]


def _halved(length: _Length) -> _Length:
    """What a convolution of stride 2 leaves."""
    return (length - 1) // 2 + 1


def _cut(features: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Cut each [bins, frames] into chunks, the last one filled up with zeros: [chunks, bins, CHUNK]."""
    cut = np.zeros((sum(_chunks_of(each.shape[1]) for each in features), len(features[0]), CHUNK), dtype=np.float32)
    first = 0
    for each in features:
        whole, rest = divmod(each.shape[1], CHUNK)
        cut[first : first + whole] = each[:, : whole * CHUNK].reshape(len(each), whole, CHUNK).swapaxes(0, 1)
        first += whole
        if rest:
            cut[first, :, :rest] = each[:, -rest:]
            first += 1
    return cut


def _chunks_of(frames: int) -> int:
    return -(-frames // CHUNK)


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of the stretches begins that follow each other."""
    return np.cumsum(counts) - counts


def _counted(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, ... count - 1 for each count, after each other."""
    return np.arange(int(counts.sum())) - np.repeat(_starts(counts), counts)
