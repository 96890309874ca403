"""The values of charts/caspi-serve: the model of a round behind an HTTP service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from caspi.charts.train import Gpus
from caspi.charts.values import (
    DnsName,
    Image,
    LabelName,
    Labels,
    Placement,
    PodMonitor,
    Quantity,
    Resources,
    Text,
    Values,
)


class RoundClaim(Values):
    """Where the round directory is. Servers mount it read-only, the benchmark writes its record there."""

    claim: DnsName = "rounds"
    """A PersistentVolumeClaim that exists. All pods mount it at /rounds."""


class ServingGpus(Gpus):
    """The GPUs of one serving pod."""

    count: int = Field(ge=1, le=16)
    """vLLM splits the model over them; caspi uses one."""


class Vllm(Values):
    """How vLLM is started (engine: vllm)."""

    max_model_len: int = Field(default=4096, ge=256)
    """Tokens of one request, audio included."""
    gpu_memory_utilization: float = Field(default=0.9, ge=0.1, le=1)
    """The share of the GPU that it takes, cache of running requests included."""
    args: list[Text] = []
    """More arguments of `vllm serve`. What the chart gives itself is refused here, and so is --trust-remote-code."""


class Autoscaling(Values):
    """A HorizontalPodAutoscaler on CPU use (engine: caspi without GPUs). It never goes below `replicas`."""

    enabled: bool = False
    """Needs metrics-server."""
    at_most: int = Field(default=4, ge=1, le=1000)
    """Pods."""
    cpu_percent: int = Field(default=80, ge=1, le=100)
    """Of `resources.cpu`, averaged over the pods; above it there will be more of them."""


class Benchmark(Values):
    """What `helm test` runs: every test set of the round through this server, into the round's records."""

    enabled: bool = True
    """false: `helm test` has nothing to do."""
    image: Image | None = None
    """One with Caspi in it (images/train). null: `image`, which is only right for engine: caspi."""
    cache: DnsName | None = None
    """The claim with downloaded test sets, as caspi-train was given it. null: /rounds/.cache."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests at a time."""
    resources: Resources = Resources(cpu="1", memory="4Gi")
    """Of the benchmark pod: it decodes audio and counts errors, it has no model."""
    deadline: int = Field(default=14_400, ge=1)
    """Seconds. Give `helm test --timeout` as many."""


class Callers(Values):
    """A NetworkPolicy: who may ask the server. It may ask nobody itself. Needs a network plugin that enforces it."""

    enabled: bool = True
    """false: no NetworkPolicy is made."""
    namespaces: Labels = {}
    """Labels of the namespaces whose pods may ask and read metrics (they share a port); none: every namespace."""


class ServeValues(Values):
    """The values of charts/caspi-serve."""

    round: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{8}$", max_length=63)]
    """The round directory on the claim, for example hebrew-r2-894f2f8c. Also the model's name in the API."""
    engine: Literal["caspi", "vllm"] = "caspi"
    """caspi: every family, on CPU or GPU (images/train). vllm: Qwen3-ASR on GPUs (images/serve)."""
    image: Image
    """images/train for engine: caspi, images/serve for engine: vllm."""
    image_pull_secrets: list[DnsName] = []
    """Secrets of the registry, by name."""
    replicas: int = Field(default=1, ge=0, le=1000)
    """Pods that serve; two or more also get a PodDisruptionBudget."""
    rollout: Literal["surge", "replace"] = "surge"
    """surge: a new pod is ready before an old one goes, so an upgrade needs room (a free GPU) for one more.
    replace: an old one goes first; with one replica nobody answers while the new one loads."""
    gpus: ServingGpus | None = None
    """null: CPU only."""
    resources: Resources = Resources(cpu="2", memory="8Gi")
    """Of one serving pod."""
    shm: Quantity = "1Gi"
    """Shared memory. Counts against the memory limit."""
    placement: Placement = Placement()
    storage: RoundClaim = RoundClaim()
    port: int = Field(default=8000, ge=1024, le=65535)
    """Of the Service and of the pods."""
    load_seconds: int = Field(default=600, ge=10)
    """How long loading the model and a first transcription may take."""
    drain_seconds: int = Field(default=10, ge=5, le=3600)
    """How long a pod that leaves the Service goes on as before; then running requests have 30 s more. vLLM cuts them
    off: give it the length of the longest request."""
    vllm: Vllm = Vllm()
    autoscaling: Autoscaling = Autoscaling()
    benchmark: Benchmark = Benchmark()
    network_policy: Callers = Callers()
    pod_monitor: PodMonitor = PodMonitor()
    labels: Labels = {}
    """On everything that is made."""
    annotations: dict[LabelName, str] = {}
    """On everything that is made."""
