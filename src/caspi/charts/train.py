"""The values of charts/caspi-train: one round, trained by an elastic PyTorchJob."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from caspi.charts.values import (
    DnsName,
    Image,
    LabelName,
    Labels,
    LabelValue,
    Metrics,
    NetworkPolicy,
    Placement,
    Quantity,
    ResourceName,
    Resources,
    Secrets,
    Storage,
    Text,
    Values,
    VariableName,
)

Seconds = Annotated[int, Field(ge=1)]


class Round(Values):
    """What is trained: the round file as `caspi submit --dry-run` prints it."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
    """Also the name of the release: one release trains one round."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """sha256 of the resolved round. The same again is adopted, another under the same name is refused."""
    file: Text
    """round.yaml, as text."""


class Approval(Values):
    """Signs an audit that says CAUTION (`caspi approve`). A STOP can't be approved."""

    by: Text
    """Who signs."""
    reason: Text
    """Why it may be trained on all the same."""
    audit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12,64}$")]
    """The digest of the audit's record that was read: an approval counts for that one only."""


class Preparation(Values):
    """Export, audit and gate, on CPUs, before any GPU is asked for: training starts when the gate passes."""

    enabled: bool = True
    """false: the round directory on the claim is exported and audited already."""
    shards: int = Field(default=1, ge=1, le=256)
    """Pods that share the work: an Indexed Job, when more than one."""
    resources: Resources = Resources(cpu="2", memory="8Gi")
    placement: Placement = Placement()
    approval: Approval | None = None
    deadline: Seconds = 86_400
    """Seconds that preparation may take in all."""


class Gpus(Values):
    """The GPUs of one worker: all those of its node."""

    count: int = Field(ge=1, le=16)
    """In a worker, one for each of its processes."""
    resource: ResourceName = "nvidia.com/gpu"
    """What the device plugin calls them."""
    product: LabelValue | None = None
    """As nodes are labelled with nvidia.com/gpu.product: one kind for a whole round."""


class Rdma(Values):
    """InfiniBand or RoCE between workers. Needs the IPC_LOCK capability, which the restricted profile refuses."""

    resource: ResourceName
    """For example rdma/hca_shared_devices_a."""
    count: int = Field(default=1, ge=1)
    """In a worker."""


class Workers(Values):
    """The training pods: one on a node, with all of its GPUs."""

    count: int = Field(default=1, ge=1, le=1000)
    """At most so many train together."""
    at_least: int = Field(default=1, ge=1, le=1000)
    """Training goes on while so many are there."""
    processes: int = Field(default=1, ge=1, le=64)
    """Training processes in a pod: one a GPU."""
    gpus: Gpus | None = None
    """null: CPU only."""
    resources: Resources = Resources(cpu="4", memory="16Gi")
    shm: Quantity = "1Gi"
    """Shared memory, for data workers and NCCL. Counts against the memory limit."""
    placement: Placement = Placement()
    spread: bool = True
    """Prefer a node for each pod."""
    lost_node_seconds: Annotated[int, Field(ge=0)] = 30
    """How long a pod stays bound to a node that does not answer."""
    rdma: Rdma | None = None
    env: dict[VariableName, str] = {}
    """More variables, for example NCCL_SOCKET_IFNAME. Secrets are refused here."""


class Retries(Values):
    """What may happen before a job is called failed. Nodes that come and go cost nothing."""

    restarts: int = Field(default=3, ge=0, le=100)
    """How often training processes that crash or hang are begun again in their pod."""
    starts: int = Field(default=5, ge=1, le=100)
    """How often a pod may be started anew without a checkpoint in between."""


class Gang(Values):
    """All or none of the first `workers.atLeast` pods, for an operator that was started with --gang-scheduler-name."""

    queue: DnsName | None = None
    """Of Volcano."""
    timeout: Seconds | None = None
    """Seconds to wait for all of them. null: for ever."""


class Disruption(Values):
    """A PodDisruptionBudget that keeps `workers.atLeast` pods through voluntary disruptions (a drain)."""

    enabled: bool = False
    """With as many workers as `workers.atLeast`, no node of theirs can be drained."""


class TrainValues(Values):
    """The values of charts/caspi-train."""

    round: Round
    cluster: Text
    """The cluster file as text: what the engine reads of it (memory, data workers, hang_timeout, trackers)."""
    image: Image
    """images/train: all that training needs."""
    launcher: Image | None = None
    """images/launcher, for the preparation: no torch, pulled in seconds. null: `image` does it."""
    image_pull_secrets: list[DnsName] = []
    """Secrets of the registry, by name."""
    workers: Workers = Workers()
    preparation: Preparation = Preparation()
    storage: Storage = Storage()
    cache: DnsName | None = None
    """A claim for downloads, mounted at /cache and shared between rounds. null: /rounds/.cache."""
    secrets: Secrets = Secrets()
    retries: Retries = Retries()
    deadline: Seconds = 604_800
    """Seconds of training from its first start, waiting included; then it saves a checkpoint and stops."""
    grace: Annotated[int, Field(ge=30, le=3600)] = 300
    """Seconds that a pod gets to finish a step and save when it is asked to stop."""
    queue: DnsName | None = None
    """A Kueue LocalQueue."""
    gang: Gang | None = None
    disruption: Disruption = Disruption()
    network_policy: NetworkPolicy = NetworkPolicy()
    metrics: Metrics = Metrics()
    labels: Labels = {}
    """On everything that is made."""
    annotations: dict[LabelName, str] = {}
    """On everything that is made."""
    log_level: Literal["WARN", "INFO"] = "WARN"
    """Of NCCL."""
