"""How much a training process needs, and so how many padded seconds a micro-batch may have. An estimate: the parts
are counted from the model's dimensions; `SAFETY` stands for what is not (fragmentation, workspaces)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from caspi.errors import UserError
from caspi.families.counts import Counts
from caspi.spec import ClusterSpec, RoundSpec

FRAMES = 100  # of the spectrogram, a second
AUDIO_TOKENS = 13  # a second, after the encoder
TEXT_TOKENS = 10  # a second at most: transcript, and the share of the prompt
CONTEXT = 1.0e9  # CUDA context, NCCL and cuBLAS workspaces
SAFETY = 1.5  # on activations
USABLE = 0.9  # of the memory: the first Hebrew run lost 2.6 of 39.5 GiB to fragmentation
LARGEST = 240.0  # more padded seconds in one micro-batch gain no speed, even where memory would allow them
CPU_LARGEST = 60.0  # caches are small: on a CPU more is slower


class Memory(BaseModel):
    """Bytes of one training process when its worst micro-batch runs."""

    model_config = ConfigDict(frozen=True)

    strategy: Literal["ddp", "fsdp"]
    parts: dict[str, int]
    total: int
    capacity: int


def micro_batch_seconds(spec: RoundSpec, cluster: ClusterSpec, counts: Counts | None) -> tuple[float, Memory | None]:
    """The cap on padded seconds (longest utterance times count) of a micro-batch, and the memory at that cap.

    The cap is 0 when not even the weights fit, sharded over all processes. Without counts the cap is the longest
    utterance kept, slowed down, and the memory is not known.
    """
    longest = spec.data.keep.seconds[1] / min(spec.train.augment.speed)
    ceiling = max(longest, LARGEST if cluster.gpus_per_node else CPU_LARGEST)
    if counts is None:
        return longest, None
    capacity = int(USABLE * cluster.memory_per_process)
    per_second = int(SAFETY * activation_bytes(counts, recompute=cluster.gpus_per_node > 0))
    trainable = max(trainable_parameters(counts, phase.rates) for phase in spec.train.phases)
    strategies: list[tuple[Literal["ddp", "fsdp"], int]] = [("ddp", 1)]
    if cluster.world_size > 1:
        strategies.append(("fsdp", cluster.world_size))
    for strategy, shards in strategies:  # noqa: B007 - the last one stands when none fits
        parts = _standing(counts.total, trainable, shards, spec.train.precision, cluster.gpus_per_node > 0)
        cap = min(ceiling, max(0.0, (capacity - sum(parts.values())) / per_second))
        if cap >= longest:
            break
    parts = {**parts, "activations": int(cap * per_second)}
    memory = Memory(strategy=strategy, parts=parts, total=sum(parts.values()), capacity=cluster.memory_per_process)
    return cap, memory


def _standing(total: int, trainable: int, shards: int, precision: str, gpu: bool) -> dict[str, int]:
    """What is there whatever the batch: fp32 masters, gradients, two moments, and the bf16 copies of autocast."""
    return {
        "weights": 4 * total // shards,
        "gradients": 4 * trainable // shards,
        "optimizer": 8 * trainable // shards,
        **({"bf16 copies": 2 * trainable} if precision == "bf16" else {}),
        **({"context": int(CONTEXT)} if gpu else {}),
    }


def trainable_parameters(counts: Counts, groups: Iterable[str]) -> int:
    """Parameters that move when these groups do. A group that the model does not have is someone else's error."""
    total = 0
    for group in groups:
        with contextlib.suppress(UserError):
            total += counts.group(group)
    return total


def activation_bytes(counts: Counts, recompute: bool) -> float:
    """Bytes of activations a padded second: audio encoder, language model, and logits at the labels.

    With recomputation (gradient checkpointing) a layer keeps its input, and one layer at a time is whole.
    """
    d = counts.dimensions
    width = 2 if recompute else 4  # bf16 on GPUs, fp32 on CPUs
    tokens = AUDIO_TOKENS + TEXT_TOKENS
    # Three convolutions, each halves time and frequency; output and its activation are kept.
    front = 2 * d.audio_channels * d.mel_bins * FRAMES * (1 / 4 + 1 / 16 + 1 / 64)
    audio_layer = AUDIO_TOKENS * (10 * d.audio_hidden + 3 * d.audio_intermediate)
    llm_layer = tokens * (6 * d.hidden + 4 * d.heads * d.head + 4 * d.intermediate)
    if recompute:
        audio = d.audio_layers * AUDIO_TOKENS * d.audio_hidden + audio_layer
        llm = d.layers * tokens * d.hidden + llm_layer
    else:
        audio, llm = d.audio_layers * audio_layer, d.layers * llm_layer
    logits = TEXT_TOKENS * d.vocabulary * 10  # fp32 logits and gradient, and their bf16 source
    return width * (front + audio + llm) + logits
