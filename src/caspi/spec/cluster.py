"""Where a round runs. Changes nothing about the result, so it is not digested with the round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

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


ImageReference = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*@sha256:[0-9a-f]{64}$"),
]
"""An image by digest: registry.example.com/asr/caspi-train@sha256:..."""

SecretReference = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[-._a-zA-Z0-9]+$")]
"""A Secret of the namespace and a key in it: huggingface/token. Never its value."""


class Images(Frozen):
    """The images of this round's pods, by digest (`make images` prints them)."""

    train: ImageReference
    """images/train."""
    launcher: ImageReference | None = None
    """images/launcher: exports and audits without torch. Without it, the train image does it."""


class SecretReferences(Frozen):
    """Where pods get secrets from."""

    huggingface: SecretReference | None = None
    """HF_TOKEN."""
    wandb: SecretReference | None = None
    """WANDB_API_KEY."""


class PodResources(Frozen):
    """What one training pod asks for, and may use at most. Without it: what its processes need by `memory`."""

    cpu: int = Field(ge=1)
    memory: Bytes
    shm: Bytes = 2**30
    """Shared memory, a part of `memory`."""


class Toleration(Frozen):
    """Of a taint that nodes have, as Kubernetes writes it."""

    key: str | None = None
    """Of the taint; without it, with Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists takes no value."""
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Without it: every effect."""
    tolerationSeconds: int | None = None
    """How long, of a NoExecute taint. Without it: for ever."""


class Pipelines(Frozen):
    """Kubeflow Pipelines, for `caspi submit --to kfp`. A token is never in a file: KFP_TOKEN."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    """Where its UI and its API answer, for example https://kubeflow.example.com/pipeline. KFP_ENDPOINT says another."""
    namespace: Name | None = None
    """Of a backend for several users: whose runs these are, and where their steps run."""
    experiment: str = Field(default="caspi", min_length=1)
    """Under which runs are listed; made where there is none."""
    node_selector: dict[str, str] = {}
    """Labels that a step's node must have."""
    tolerations: list[Toleration] = []
    """Of taints, for steps."""
    pull_secret: Name | None = None
    """A Secret of the steps' namespace with the password of the registry."""
    benchmark_gpus: int = Field(default=0, ge=0, le=16)
    """GPUs of the step that serves and measures the model."""


class Kubernetes(Frozen):
    """Where on Kubernetes, for `caspi submit`."""

    context: str | None = None
    """Of the kubeconfig. Without it: the current one."""
    namespace: Name = "default"
    storage: Storage | None = None
    queue: str | None = None
    """A Kueue LocalQueue."""
    nodes_at_least: int = Field(default=1, ge=1)
    """Training goes on while so many of `nodes` are there."""
    images: Images | None = None
    secrets: SecretReferences = SecretReferences()
    pod: PodResources | None = None
    pipelines: Pipelines = Pipelines()


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
    def _consistent(self) -> ClusterSpec:
        if self.gpus_per_node and self.gpu is None:
            raise ValueError(
                "gpu is missing: say which, for example gpu: {product: NVIDIA-A100-SXM4-40GB, memory: 40GiB}"
            )
        if self.gpu and not self.gpus_per_node:
            raise ValueError("gpus_per_node is 0, but gpu describes one")
        if self.kubernetes and self.kubernetes.nodes_at_least > self.nodes:
            raise ValueError(
                f"kubernetes.nodes_at_least is {self.kubernetes.nodes_at_least}, but nodes is {self.nodes}"
            )
        return self

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)

    @property
    def memory_per_process(self) -> int:
        """Bytes that one training process may use: of its GPU, or of the host."""
        return self.gpu.memory if self.gpus_per_node and self.gpu else self.memory
