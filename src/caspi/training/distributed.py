"""Training processes: one alone, or many under torchrun. Everything that crosses between them is here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from caspi.errors import Preempted
from caspi.training.attendance import Attendance, attendance

T = TypeVar("T")

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # read when CUDA is first used; a user's own stands
BUCKET = 16 * 2**20  # elements of gradients that are reduced at once: 64 MB
TIMEOUT = timedelta(minutes=30)  # the leader writes a checkpoint or downloads a base model while the others wait


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the training processes."""

    rank: int
    world_size: int
    device: torch.device
    attendance: Attendance | None = None

    @property
    def leader(self) -> bool:
        """Writes files, shows progress."""
        return self.rank == 0

    def arrive(self) -> None:
        """Before an exchange of a step: a rank that does not come to it for `hang_timeout` is named."""
        if self.attendance:
            self.attendance.arrive()

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
def processes(hang_timeout: float = 300.0) -> Iterator[Processes]:
    """Join the processes that an agent started (RANK, WORLD_SIZE, LOCAL_RANK), or be the only one.

    Preempted when another one is gone. One that does not come to an exchange for `hang_timeout` seconds while others
    wait ends the process, with the code of Unanswered.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        # Micro-batches differ in shape: without it the first Hebrew run lost 2.6 of 39.5 GiB to fragmentation.
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cpu":
        torch.set_num_threads(1)  # with two under contention a step takes ten times longer
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        watched = attendance(rank, world_size, hang_timeout) if hang_timeout else nullcontext()
        with watched as own:
            yield Processes(rank, world_size, device, own)
    except RuntimeError as error:
        if not _says_that_one_is_gone(error):
            raise
        raise Preempted(
            f"rank {rank} lost another training process ({str(error).splitlines()[0]}); "
            "the last checkpoint is whole, run the same command to go on"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _says_that_one_is_gone(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, with the place in its source; the store and NCCL have types of their own."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def identical(processes: Processes, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every process holds these tensors bit for bit."""
    fingerprint = _fingerprint(list(tensors))
    if processes.world_size == 1:
        return True
    gathered = [torch.empty_like(fingerprint) for _ in range(processes.world_size)]
    dist.all_gather(gathered, fingerprint)
    return all(torch.equal(other, fingerprint) for other in gathered)


def sum_gradients(processes: Processes, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes. A missing one is 0, also where there is one process: a
    parameter that nothing used decays alike on any number of them."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if processes.world_size > 1:
        gradients = [summed for bucket in _buckets(gradients) for summed in _summed(bucket)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Runs of tensors to reduce at once: a reduction of many small ones costs as much as one of a large one."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    yield bucket


def _summed(bucket: list[torch.Tensor]) -> list[torch.Tensor]:
    flat = torch.cat([tensor.flatten() for tensor in bucket]) if len(bucket) > 1 else bucket[0].flatten()
    dist.all_reduce(flat)
    pieces = torch.split(flat, [tensor.numel() for tensor in bucket])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, bucket, strict=True)]


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
