"""Training processes: one alone, or many under torchrun. Everything that crosses between them is here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # the leader writes a checkpoint or downloads a base model while the others wait


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the training processes."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Writes files, shows progress."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes. Goes through the host: a GPU never waits for it."""
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values)
        return [float(value) for value in values]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def from_leader(self, value: T) -> T:
        """The leader's value, on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or be the only one."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cpu":
        torch.set_num_threads(1)  # with two under contention a step takes ten times longer
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()


def identical(processes: Processes, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every process holds these tensors bit for bit."""
    fingerprint = _fingerprint(list(tensors))
    if processes.world_size == 1:
        return True
    gathered = [torch.empty_like(fingerprint) for _ in range(processes.world_size)]
    dist.all_gather(gathered, fingerprint)
    return all(torch.equal(other, fingerprint) for other in gathered)


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _fingerprint(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Two integers a tensor: the sum of its bits, and a sum weighted by place. Wraps around, on any device."""
    rows = [torch.zeros(2, dtype=torch.int64)]
    for tensor in tensors:
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        for piece in tensor.detach().contiguous().view(width).flatten().split(1 << 24):  # type: ignore[no-untyped-call]
            bits = piece.to(torch.int64)
            place = torch.arange(1, bits.numel() + 1, device=bits.device)
            rows.append(torch.stack([bits.sum(), (bits * place).sum()]).cpu())
    return torch.stack(rows)
