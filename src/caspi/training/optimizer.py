"""What moves in one phase: its parameter groups, and a fresh AdamW for them. Both are built anew at every phase.

The gradient of a step crosses between processes once, after every process said that its micro-batches fit in memory,
and not, as under DistributedDataParallel, while the last backward pass runs. What that overlap would save is given up;
it buys that a process that runs out of memory never leaves the others waiting in the middle of a reduction, and that
nothing remembers which parameters moved in the phase before (thawing under an old DDP wrap raises nothing and makes
ranks drift apart). Sharded weights can't wait: they cross block by block (sharding.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from caspi.families.base import SAMPLE_RATE, Batch, Model
from caspi.spec.round import Optimizer
from caspi.training.data import MicroBatch
from caspi.training.distributed import Processes, sum_gradients
from caspi.training.memory_ladder import ShortOfMemory
from caspi.training.phases import PhasePlan
from caspi.training.sharding import is_sharded, laid_out, whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class PhaseOptimizer:
    """Takes optimizer steps on the groups of one phase; every other parameter is frozen."""

    def __init__(
        self, model: Model, phase: PhasePlan, settings: Optimizer, precision: str, processes: Processes
    ) -> None:
        self.model, self.processes = model, processes
        self.sharded = is_sharded(model.network)
        self.clip = settings.clip
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        groups = model.groups(list(phase.rates))
        self.trainable = [parameter for group in groups.values() for parameter in group]
        freeze_all_but(model.network, self.trainable)
        self.names = {id(parameter): name for name, parameter in model.network.named_parameters()}
        self.adamw = torch.optim.AdamW(
            list(_decayed_apart(groups, phase.rates, settings.weight_decay)),
            betas=settings.betas,
            fused=processes.device.type == "cuda",
        )
        self._make_moments()

    def accumulate(self, micro_batches: Sequence[MicroBatch], tokens: float) -> float:
        """Gradient of the loss of the GLOBAL batch: sum of token losses over all ranks / its `tokens`.

        Returns this rank's share of that loss; the shares of all ranks sum to it. ShortOfMemory when a micro-batch
        did not fit, here or on another rank: no gradient is left.
        """
        self.adamw.zero_grad(set_to_none=True)
        self.model.network.train()
        total = torch.zeros((), device=self.processes.device)
        fits = True
        for micro_batch in micro_batches:
            try:
                total += self._backward(micro_batch, tokens)
            except torch.OutOfMemoryError:
                fits = False
                break
        if self.sharded and not fits:
            raise ShortOfMemory(together=False)
        if not self.sharded:
            self.processes.arrive()
            (short,) = self.processes.sum(float(not fits))
            if short:
                self.forget()
                raise ShortOfMemory(together=True)
            sum_gradients(self.processes, self.trainable)
        return float(total) / tokens

    def forget(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad(set_to_none=True)
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()

    def update(self, factor: float) -> float:
        """Clip by the global norm and step at `factor` times the peak rates; returns the norm before clipping.

        A norm that is not finite moves nothing.
        """
        total = torch.nn.utils.clip_grad_norm_(self.trainable, self.clip)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if norm != norm or norm == float("inf"):
            return norm
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor
        self.adamw.step()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """The state of AdamW by parameter name, whole, on the leader: any world size can load it. All ranks call it."""
        return whole(
            {
                f"{self.names[id(parameter)]}.{moment}": values[moment]
                for parameter, values in self.adamw.state.items()
                for moment in MOMENTS
            },
            keep=self.processes.leader,
        )

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        for parameter in self.trainable:
            name = self.names[id(parameter)]
            for moment, value in self.adamw.state[parameter].items():
                if (stored := state.get(f"{name}.{moment}")) is not None:  # none of what did not move before
                    value.copy_(laid_out(stored, value))

    def rehearse(self, micro_batch: MicroBatch) -> None:
        """Run a micro-batch forward and backward for its memory alone: nothing moves, no gradient is left."""
        self.accumulate([micro_batch], 1.0)
        self.forget()

    def _make_moments(self) -> None:
        """AdamW makes them in its first step. They are here before it, so that a rehearsal has them to carry too."""
        fused = self.adamw.defaults["fused"]
        for parameter in self.trainable:
            self.adamw.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if fused else None),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def _backward(self, micro_batch: MicroBatch, tokens: float) -> torch.Tensor | float:
        """Add to the gradients; the sum of the token losses. A rank with nothing to do adds nothing."""
        batch, weight = micro_batch.batch, 1.0
        if batch is None:
            if not self.sharded:
                return 0.0
            batch, weight = self._silence(), 0.0
        device = self.processes.device
        with torch.autocast(device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            loss: torch.Tensor = self.model.network(**batch.to(device).tensors) * weight
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _silence(self) -> Batch:
        """What a rank runs, for nothing, so that the others can gather from it and reduce with it."""
        return self.model.collate([self.model.example(np.zeros(SAMPLE_RATE, dtype=np.float32), "")])


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
