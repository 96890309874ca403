"""Adapters beside the matrices of a model (LoRA, Hu et al. 2021), by peft; merged in everything that is saved.

A checkpoint's own files hold the merged weights, under the names that the family gives them: it loads anywhere,
without peft. What a resume needs lies beside them, in engine/adapters.safetensors: the adapters and whatever else
may have moved, not merged. Training goes on from the base and these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from caspi.errors import StageFailed, UserError
from caspi.families.base import Model
from caspi.records.results import Adapters
from caspi.spec.round import Lora, TrainSpec
from caspi.training.checkpoint import ENGINE

GROUP = "lora"
FILE = "adapters.safetensors"
PARITY = 1e-5  # largest difference between a matrix with its adapter and the two merged, over the largest output


def with_adapters(model: Model, train: TrainSpec, seed: int, checkpoint: Path | None) -> Model:
    """The base model with adapters, as `checkpoint` left them; the model itself when the round has no LoRA."""
    if train.lora is None:
        return model
    adapted = Adapted(model, train.lora, train, seed)
    if checkpoint is not None:
        adapted.restore(load_file(checkpoint / ENGINE / FILE))
    return cast(Model, adapted)


class Adapted:
    """A model with adapters. The engine trains it as it trains any other."""

    def __init__(self, model: Model, lora: Lora, train: TrainSpec, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.model, self.network, self.lora = model, model.network, lora
        pattern = model.adapted(lora.targets)
        if not any(re.fullmatch(pattern, name) for name, _ in self.network.named_modules()):
            raise UserError(f"train.lora.targets = {', '.join(lora.targets)}: the model has no such matrices")
        alpha: Any = lora.alpha  # peft says int and means any number
        config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=pattern)
        inject_adapter_in_model(config, self.network)
        self.matrices = dict(_matrices(self.network))
        for number, (_, matrix) in enumerate(sorted(self.matrices.items())):
            _begin(matrix, seed, number)
        self.kept = self._that_may_move({group for phase in train.phases for group in phase.rates})

    # --- parameters

    def groups(self, names: Sequence[str]) -> dict[str, list[torch.nn.Parameter]]:
        adapters = [p for _, matrix in sorted(self.matrices.items()) for p in _adapters(matrix)]
        own = {id(parameter) for parameter in adapters}
        others = self.model.groups([name for name in names if name != GROUP])
        found = {name: [p for p in group if id(p) not in own] for name, group in others.items()}
        return {name: adapters if name == GROUP else found[name] for name in names}

    def described(self) -> Adapters:
        """For the record."""
        return Adapters(
            rank=self.lora.rank,
            alpha=self.lora.alpha,
            matrices=len(self.matrices),
            parameters=sum(p.numel() for matrix in self.matrices.values() for p in _adapters(matrix)),
        )

    # --- checkpoints

    def save(self, folder: Path) -> None:
        """The merged model in the family's layout; in engine/ what a resume needs. No weight moves by it."""
        check_all_take_part(self.matrices)
        (folder / ENGINE).mkdir(exist_ok=True)
        save_file(self.state(), folder / ENGINE / FILE)
        with self.merged():
            self.model.save(folder)

    def state(self) -> dict[str, torch.Tensor]:
        """By name in the network: adapters, buffers, and the parameters that any phase moves; tied ones once."""
        tensors = self.network.state_dict()
        return {name: tensors[name].detach().cpu().contiguous() for name in self.kept}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """UserError when the state is not that of these adapters."""
        if state.keys() != set(self.kept):
            raise UserError("the adapters of the checkpoint are not those of this round; move train/checkpoints aside")
        self.network.load_state_dict(state, strict=False)

    def _that_may_move(self, groups: set[str]) -> list[str]:
        """Names, since sharding puts other tensors under them."""
        moving = {p.data_ptr() for group in self.groups(sorted(groups)).values() for p in group}
        still = {p.data_ptr() for p in self.network.parameters()} - moving
        names = []
        for name, tensor in self.network.state_dict().items():
            if tensor.data_ptr() not in still or not tensor.numel():
                still.add(tensor.data_ptr())
                names.append(name)
        return names

    @contextmanager
    def merged(self) -> Iterator[None]:
        """With plain matrices, weight + alpha / rank * B @ A, on the CPU, in the place of those with adapters. Within
        it the network is what is saved; afterwards the weights are what they were, to the bit."""
        plain = {name: _merged(name, matrix) for name, matrix in self.matrices.items()}
        for name, module in plain.items():
            _put(self.network, name, module)
        try:
            yield
        finally:
            for name, matrix in self.matrices.items():
                _put(self.network, name, matrix)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's: examples, batches, transcripts, tied tensors."""
        return getattr(self.model, name)


def check_all_take_part(matrices: dict[str, Any]) -> None:
    """Some layers read the weight of a matrix and never call it: its adapter would be saved, and do nothing."""
    still = [name for name, matrix in sorted(matrices.items()) if not bool(_b(matrix).any())]
    if still and len(still) < len(matrices):
        raise UserError(
            f"train.lora.targets: the adapter of {still[0]} never moves while others do, so the model does not use it "
            f"({len(still)} of {len(matrices)}); leave that target out"
        )


def _matrices(network: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import Linear

    for name, module in network.named_modules():
        if isinstance(module, Linear):
            yield name, module


def _a(matrix: Any) -> torch.nn.Parameter:
    """[rank, in]"""
    parameter: torch.nn.Parameter = matrix.lora_A["default"].weight
    return parameter


def _b(matrix: Any) -> torch.nn.Parameter:
    """[out, rank]"""
    parameter: torch.nn.Parameter = matrix.lora_B["default"].weight
    return parameter


def _adapters(matrix: Any) -> list[torch.nn.Parameter]:
    return [_a(matrix), _b(matrix)]


@torch.no_grad()
def _begin(matrix: Any, seed: int, number: int) -> None:
    """A is drawn (uniformly, Kaiming's bounds), B is 0: the model begins as its base. The same on every process."""
    drawn = (
        np.random.default_rng([seed, number, 4]).uniform(-1, 1, tuple(_a(matrix).shape)) / _a(matrix).shape[1] ** 0.5
    )
    _a(matrix).copy_(torch.from_numpy(drawn))
    _b(matrix).zero_()


@torch.no_grad()
def _merged(name: str, matrix: Any) -> torch.nn.Linear:
    """A plain Linear in fp32 that does what the matrix and its adapter do together; checked."""
    base, scale = matrix.base_layer, matrix.scaling["default"]
    weight = base.weight + scale * (_b(matrix) @ _a(matrix))
    probe = torch.linspace(-1, 1, 4 * base.in_features, device=weight.device).view(4, -1)
    beside = probe @ base.weight.T + scale * (probe @ _a(matrix).T @ _b(matrix).T)
    off = float((probe @ weight.T - beside).abs().max() / beside.abs().max().clamp(min=1e-6))
    if not off < PARITY:
        raise StageFailed(f"the merged weights of {name} differ from its adapter's by {off:.1e} of the largest output")
    with torch.device("meta"):  # its own weights are never made
        plain = torch.nn.Linear(base.in_features, base.out_features, bias=False)
    plain.weight = torch.nn.Parameter(weight.cpu(), requires_grad=False)
    plain.bias = base.bias
    return plain


def _put(network: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)
