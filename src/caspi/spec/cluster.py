"""Where a round runs. Changes nothing about the result, so it is not digested with the round."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from caspi.spec.values import Bytes, Frozen, HourlyPrice, Name


class Gpu(Frozen):
    """One GPU of the cluster, as `nvidia-smi` and the bill name it."""

    product: str = Field(min_length=1)
    memory: Bytes
    price: HourlyPrice | None = None
    """Of one GPU for one hour."""


class Storage(Frozen):
    """Where round directories live on Kubernetes."""

    claim: Name
    """A PersistentVolumeClaim that all pods can mount."""


class Kubernetes(Frozen):
    """Where on Kubernetes."""

    namespace: Name = "default"
    storage: Storage | None = None
    queue: str | None = None
    """A Kueue LocalQueue."""


class ClusterSpec(Frozen):
    """The machines: GPUs, or CPU processes where there are none."""

    nodes: int = Field(default=1, ge=1, le=4096)
    gpus_per_node: int = Field(default=0, ge=0, le=16)
    gpu: Gpu | None = None
    processes_per_node: int = Field(default=1, ge=1, le=64)
    """Training processes on a node without GPUs. With GPUs it is one a GPU."""
    memory: Bytes = 4 * 2**30
    """Host memory that one CPU training process may use."""
    workers: int = Field(default=1, ge=0, le=64)
    """Data workers for each training process; 0 decodes in the training process."""
    hang_timeout: float = Field(default=300.0, gt=0)
    """Seconds that training processes wait in a step for one that does not answer, before they name it and end."""
    track: list[Literal["tensorboard", "wandb"]] = []
    """Where curves also go, beside metrics.jsonl. An outage of one never stops training."""
    data_root: str | None = None
    """The folder that relative paths of the round start from. Without it, the folder of the round file."""
    kubernetes: Kubernetes | None = None

    @model_validator(mode="after")
    def _gpus_described(self) -> ClusterSpec:
        if self.gpus_per_node and self.gpu is None:
            raise ValueError(
                "gpu is missing: say which, for example gpu: {product: NVIDIA-A100-SXM4-40GB, memory: 40GiB}"
            )
        if self.gpu and not self.gpus_per_node:
            raise ValueError("gpus_per_node is 0, but gpu describes one")
        return self

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)

    @property
    def memory_per_process(self) -> int:
        """Bytes that one training process may use: of its GPU, or of the host."""
        return self.gpu.memory if self.gpus_per_node and self.gpu else self.memory
