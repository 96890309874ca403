"""The audio encoder of Qwen3-ASR over all clips of a batch at once.

The package runs it clip by clip. Here the clips' chunks go through the convolutions together and their tokens
through the layers as one sequence, in which a clip sees itself alone, in windows of 8 s: what FlashAttention 2
and vLLM compute, and what the package means but leaves out on its other attention paths, where a clip of more
than 8 s sees all of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import AttentionInterface

_Length = TypeVar("_Length", int, torch.Tensor)

CHUNK = 100
"""Frames that the convolutions see at once: one second, 13 tokens. Fixed in the package's own length formula."""

ATTENTION = "caspi_blocks"
"""The name under which transformers finds `_attend_in_blocks`."""


def audio_tokens(frames: int) -> int:
    """Tokens that the encoder makes of so many frames."""
    return frames // CHUNK * 13 + _halved(_halved(_halved(frames % CHUNK)))


def chunks(features: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Cut each [bins, frames] into chunks, the last one filled up with zeros: [chunks, bins, CHUNK]."""
    counts = [-(-each.shape[1] // CHUNK) for each in features]
    cut = np.zeros((sum(counts), features[0].shape[0], CHUNK), dtype=np.float32)
    first = 0
    for each, count in zip(features, counts, strict=True):
        for index in range(count):
            part = each[:, index * CHUNK : (index + 1) * CHUNK]
            cut[first + index, :, : part.shape[1]] = part
        first += count
    return cut


def encode(tower: Any, chunked: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """[tokens of all clips, width of the language model], clip after clip.

    `chunked` is what `chunks` returns; `frames` are the clips' lengths.
    """
    assert tower.n_window * 2 == CHUNK, "the package's length formula knows no other chunk"
    valid = torch.tensor([audio_tokens(length) for length in _chunk_lengths(frames)], device=chunked.device)
    hidden = _convolve(tower, chunked, frames)
    hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
    hidden = hidden[torch.arange(hidden.shape[1], device=hidden.device) < valid[:, None]]

    blocks = Blocks.of(frames, tower.n_window_infer // CHUNK * 13, hidden.device)
    tower.config._attn_implementation = ATTENTION
    for layer in tower.layers:
        hidden = layer(hidden, blocks.bounds, blocks=blocks)[0]
    projected: torch.Tensor = tower.proj2(tower.act(tower.proj1(tower.ln_post(hidden))))
    return projected


@dataclass(frozen=True, slots=True)
class Blocks:
    """Stretches of the token sequence that see themselves alone, laid out as rows of a padded batch."""

    place: torch.Tensor
    """[blocks, longest]: the token that stands there; any on filling."""
    seen: torch.Tensor
    """[blocks, longest]: False on filling."""
    bounds: torch.Tensor
    """[blocks + 1]: the same as the package writes it."""

    @classmethod
    def of(cls, frames: Sequence[int], window: int, device: torch.device) -> Blocks:
        lengths = torch.tensor(
            [min(window, tokens - start) for tokens in map(audio_tokens, frames) for start in range(0, tokens, window)]
        )
        bounds = functional.pad(lengths.cumsum(0), (1, 0))
        within = torch.arange(int(lengths.max()))
        seen = within < lengths[:, None]
        place = torch.where(seen, bounds[:-1, None] + within, 0)
        return cls(place.to(device), seen.to(device), bounds.to(device, torch.int32))


def _attend_in_blocks(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    blocks: Blocks,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; [1, heads, tokens, width] each, the result [1, tokens, heads, width]."""
    query, key, value = (each[0].transpose(0, 1)[blocks.place].transpose(1, 2) for each in (query, key, value))
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=blocks.seen[:, None, None], scale=scaling
    )
    return out.transpose(1, 2)[blocks.seen].unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attend_in_blocks)


def _chunk_lengths(frames: Sequence[int]) -> list[int]:
    """Frames of each chunk that are not filling."""
    return [min(CHUNK, length - start) for length in frames for start in range(0, length, CHUNK)]


def _convolve(tower: Any, chunked: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """[chunks, 13, width]."""
    # The package fills up the last chunk of a clip, but not the only chunk of a clip under one second: for that
    # one, what lies behind the end must stay the zeros that a convolution sees behind its input.
    widths = [length if length < CHUNK else CHUNK for length in frames for _ in range(0, length, CHUNK)]
    parts = [
        _convolve_some(tower, some, widths[start : start + len(some)])
        for start, some in _portions(chunked, tower.conv_chunksize)
    ]
    hidden = torch.cat(parts) if len(parts) > 1 else parts[0]
    out: torch.Tensor = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    return out


def _convolve_some(tower: Any, chunked: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    short = [row for row, width in enumerate(widths) if width < CHUNK]
    ends = torch.tensor([widths[row] for row in short], device=chunked.device)
    hidden = functional.gelu(tower.conv2d1(chunked.unsqueeze(1)))
    # Channels last: convolutions run about twice as fast on a CPU, and no slower on a GPU.
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    for convolution in (tower.conv2d2, tower.conv2d3):
        if short:
            ends = _halved(ends)
            behind = torch.arange(hidden.shape[-1], device=hidden.device) >= ends[:, None]
            hidden = hidden.index_copy(
                0, torch.tensor(short, device=hidden.device), hidden[short].masked_fill(behind[:, None, None], 0)
            )
        hidden = functional.gelu(convolution(hidden))
    return hidden


def _portions(chunked: torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Chunks in portions: the convolutions' outputs are the largest tensors of the encoder."""
    for start in range(0, len(chunked), size):
        yield start, chunked[start : start + size]


def _halved(length: _Length) -> _Length:
    """What a convolution of stride 2 leaves."""
    return (length - 1) // 2 + 1
