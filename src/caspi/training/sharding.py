"""Weights spread over all processes (FSDP2), where a model and its optimizer do not fit on one GPU.

A process loads the whole model in fp32, then keeps its share of each tensor, and so of each gradient and moment. A
block is gathered when it runs, forward and again backward; what is no block (embedding, head, convolutions, norms
between) is gathered once a micro-batch. Names, groups and tied tensors stay what they were, and checkpoints hold
whole tensors: any number of processes goes on from them, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from caspi.families.base import Model
from caspi.training.distributed import Processes


def shard(model: Model, precision: str, processes: Processes) -> None:
    """Spread the weights of a model that every process holds alike. Gradients become sums over the processes.

    The arithmetic stays autocast's: residuals, norms and the loss in fp32. Under bf16 the blocks travel in bf16, which
    is what their matrix products see anyway; masters and the sum of gradients are fp32.
    """
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    halved = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    parts = []
    for block in model.blocks():
        # The one operation that takes its weights in fp32 or not at all, under autocast too.
        batch_norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        parts += [fully_shard(norm, mesh=mesh, reshard_after_forward=True) for norm in batch_norms]
        parts.append(fully_shard(block, mesh=mesh, mp_policy=halved, reshard_after_forward=True))
    parts.append(fully_shard(model.network, mesh=mesh, reshard_after_forward=False))
    for part in parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def is_sharded(network: torch.nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def replicated(network: torch.nn.Module) -> list[torch.Tensor]:
    """What every process must hold alike: buffers, and weights that are not sharded."""
    return [tensor for tensor in network.state_dict().values() if not isinstance(tensor, DTensor)]


@contextmanager
def gathered(network: torch.nn.Module) -> Iterator[None]:
    """All weights on every process (as they travel), so that each may use the network at its own pace.

    Transcribing takes as many steps as a process's clips need: gathering block by block would make it wait for others.
    """
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not network, recurse=False)


@contextmanager
def whole_network(network: torch.nn.Module, keep: bool) -> Iterator[None]:
    """Where `keep`, the network holds whole fp32 tensors on the CPU in the place of its shards, to be saved as any
    other network is. Every process must call it; nothing but saving may be done within."""
    shards = dict(network.named_parameters(remove_duplicate=False))
    full = whole(shards, keep) if is_sharded(network) else {}
    parameters = {id(tensor): torch.nn.Parameter(tensor, requires_grad=False) for tensor in full.values()}
    _put(network, {name: parameters[id(tensor)] for name, tensor in full.items()})
    try:
        yield
    finally:
        _put(network, {name: shards[name] for name in full})


def whole(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """The tensors in full on the CPU where `keep`, none elsewhere. Of shards every process must call it.

    One tensor at a time is gathered, so it takes little memory on the GPU. The same tensor under two names (tied) is
    one tensor in the result too.
    """
    found: dict[str, torch.Tensor] = {}
    by_identity: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in by_identity:
            by_identity[id(tensor)] = _full(tensor, keep)
        found[name] = by_identity[id(tensor)]
    return found if keep else {}


def _full(tensor: torch.Tensor, keep: bool) -> torch.Tensor:
    full: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous() if keep else torch.empty(0)


def _put(network: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        module, _, last = name.rpartition(".")
        setattr(network.get_submodule(module), last, parameter)


def laid_out(stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of `like`, and sharded as it is. Every process holds `stored`, none sends."""
    if isinstance(like, DTensor):
        return distribute_tensor(stored.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return stored.to(like.device)
