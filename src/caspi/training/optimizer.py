"""What moves in one phase: its parameter groups, a fresh AdamW for them, and a fresh DDP wrap around the network.

All three are built anew at every phase boundary. Thawing parameters under an existing wrap raises nothing and
makes ranks drift apart, because DDP only averages what required a gradient when it was wrapped.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from caspi.families.base import Model
from caspi.spec.round import Optimizer
from caspi.training.data import MicroBatch
from caspi.training.distributed import Processes
from caspi.training.phases import PhasePlan

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class PhaseOptimizer:
    """Takes optimizer steps on the groups of one phase; every other parameter is frozen."""

    def __init__(
        self, model: Model, phase: PhasePlan, settings: Optimizer, precision: str, processes: Processes
    ) -> None:
        self.processes = processes
        self.clip = settings.clip
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        self.rates = dict(phase.rates)
        groups = model.groups(list(phase.rates))
        self.trainable = [parameter for group in groups.values() for parameter in group]
        freeze_all_but(model.network, self.trainable)
        self.names = {id(parameter): name for name, parameter in model.network.named_parameters()}
        self.adamw = torch.optim.AdamW(
            list(_decayed_apart(groups, phase.rates, settings.weight_decay)),
            betas=settings.betas,
            fused=processes.device.type == "cuda",
        )
        self.network: torch.nn.Module = SummedLoss(model.network, self.trainable)
        if processes.world_size > 1:
            self.network = DistributedDataParallel(
                self.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def accumulate(self, micro_batches: Sequence[MicroBatch], tokens: float) -> float:
        """Gradient of the loss of the GLOBAL batch: sum of token losses over all ranks / its `tokens`.

        Returns this rank's share of that loss; the shares of all ranks sum to it.
        """
        self.adamw.zero_grad(set_to_none=True)
        self.network.train()
        scale = self.processes.world_size / tokens  # DDP averages over ranks; the loss is a sum over them
        total = torch.zeros((), device=self.processes.device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            with self._synchronised(number == len(micro_batches)):
                loss = self._loss(micro_batch)
                (loss * scale).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total) / tokens

    def update(self, factor: float) -> float:
        """Clip by the global norm and step at `factor` times the peak rates; returns the norm before clipping.

        A norm that is not finite moves nothing.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable, self.clip))
        if norm != norm or norm == float("inf"):
            return norm
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor
        self.adamw.step()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """The state of AdamW by parameter name: the same on every rank, so that any world size can load it."""
        return {
            f"{self.names[id(parameter)]}.{moment}": values[moment].detach().cpu().contiguous()
            for parameter, values in self.adamw.state.items()
            for moment in MOMENTS
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        for parameter in self.trainable:
            name = self.names[id(parameter)]
            if f"{name}.step" not in state:
                continue  # the checkpoint is of before the first step
            moments = {moment: state[f"{name}.{moment}"].clone() for moment in MOMENTS}
            for moment in ("exp_avg", "exp_avg_sq"):
                moments[moment] = moments[moment].to(parameter.device)
            if self.adamw.defaults["fused"]:
                moments["step"] = moments["step"].to(parameter.device)
            self.adamw.state[parameter] = moments

    def close(self) -> None:
        """Let go of the DDP wrap: one that outlives its process group can hang the process as it ends."""
        if isinstance(self.network, DistributedDataParallel):
            self.network = torch.nn.Identity()
            gc.collect()

    def _loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        device = self.processes.device
        tensors = micro_batch.batch.to(device).tensors if micro_batch.batch else None
        with torch.autocast(device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            loss: torch.Tensor = self.network(tensors)
        return loss

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Gradients cross between ranks once a step, with its last micro-batch."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()


class SummedLoss(torch.nn.Module):
    """The network as DDP sees it. Without a batch the loss is 0 with a gradient of 0 for all that moves, so that a
    rank with nothing to do takes part in the same collectives as the others."""

    def __init__(self, network: torch.nn.Module, trainable: Sequence[torch.nn.Parameter]) -> None:
        super().__init__()
        self.network = network
        self._trainable = tuple(trainable)  # a tuple, so that they are registered once only: in the network

    def forward(self, tensors: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
        if tensors is None:
            return torch.stack([parameter.sum() * 0 for parameter in self._trainable]).sum()
        loss: torch.Tensor = self.network(**tensors)
        return loss


def freeze_all_but(network: torch.nn.Module, trainable: Iterable[torch.nn.Parameter]) -> None:
    moving = {id(parameter) for parameter in trainable}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in moving)
        parameter.grad = None


def _decayed_apart(
    groups: Mapping[str, Sequence[torch.nn.Parameter]], rates: Mapping[str, float], decay: float
) -> Iterable[dict[str, object]]:
    """AdamW's groups: weight decay on matrices, none on biases and norms."""
    for name, parameters in groups.items():
        for share, weight_decay in (("matrices", decay), ("vectors", 0.0)):
            chosen = [p for p in parameters if (p.ndim >= 2) == (share == "matrices")]
            if chosen:
                yield {
                    "params": chosen,
                    "lr": 0.0,
                    "peak": rates[name],
                    "weight_decay": weight_decay,
                    "name": name,
                }
