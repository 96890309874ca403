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
from caspi.spec.round import TrainSpec

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


def micro_batch_seconds(
    spec: RoundSpec, cluster: ClusterSpec, counts: Counts | None, world_size: int | None = None
) -> tuple[float, Memory | None]:
    """The cap on padded seconds (longest utterance times count) of a micro-batch, and the memory at that cap.

    `world_size` is how many processes there are, where that is known: as many as the cluster has may never come.
    The cap is 0 when not even the weights fit, sharded over all processes. Without counts the cap is the longest
    utterance kept, slowed down, and the memory is not known.
    """
    longest = spec.data.keep.seconds[1] / min(spec.train.augment.speed)
    ceiling = max(longest, LARGEST if cluster.gpus_per_node else CPU_LARGEST)
    if counts is None:
        return longest, None
    capacity = int(USABLE * cluster.memory_per_process)
    per_second = int(SAFETY * counts.activation_bytes(cluster.gpus_per_node > 0, longest))
    trainable = max(trainable_parameters(counts, spec.train, phase.rates) for phase in spec.train.phases)
    strategies: list[tuple[Literal["ddp", "fsdp"], int]] = [("ddp", 1)]
    processes = world_size or cluster.world_size
    if processes > 1:
        strategies.append(("fsdp", processes))
    for strategy, shards in strategies:  # noqa: B007 - the last one stands when none fits
        parts = _standing(counts, trainable, shards, spec.train.precision == "bf16", cluster.gpus_per_node > 0)
        cap = min(ceiling, max(0.0, (capacity - sum(parts.values())) / per_second))
        if cap >= longest:
            break
    parts = {**parts, "activations": int(cap * per_second)}
    memory = Memory(strategy=strategy, parts=parts, total=sum(parts.values()), capacity=cluster.memory_per_process)
    return cap, memory


def _standing(counts: Counts, trainable: int, shards: int, half: bool, gpu: bool) -> dict[str, int]:
    """What is there whatever the batch: fp32 masters, gradients, two moments, and what is made of the weights to
    compute with them: autocast's bf16 copies, or what is gathered of shards."""
    return {
        "weights": 4 * counts.total // shards,
        "gradients": 4 * trainable // shards,
        "optimizer": 8 * trainable // shards,
        **({"gathered": _gathered(counts, half)} if shards > 1 else {"bf16 copies": 2 * trainable} if half else {}),
        **({"context": int(CONTEXT)} if gpu else {}),
    }


def _gathered(counts: Counts, half: bool) -> int:
    """The block that runs, the one before and the one after it; and what is no block, in fp32 with its bf16 copies.
    Each with its gradient, which is whole until it is reduced."""
    block, apart = max(counts.blocks, default=0), counts.total - sum(counts.blocks)
    return (3 * block * (2 + 4) + apart * (4 + 4 + 2)) if half else 8 * (3 * block + apart)


def trainable_parameters(counts: Counts, train: TrainSpec, groups: Iterable[str]) -> int:
    """Parameters that move when these groups do. A group that the model does not have is someone else's error."""
    total = 0
    for group in groups:
        with contextlib.suppress(UserError):
            total += group_parameters(counts, train, group)
    return total


def group_parameters(counts: Counts, train: TrainSpec, group: str) -> int:
    """Parameters of one group, or of the adapters; UserError when the model does not have it."""
    if group == "lora" and train.lora:
        return train.lora.rank * counts.adapters(train.lora.targets)
    return counts.group(group)
