"""The values of charts/caspi-serve: the model of a round behind an HTTP service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from caspi.charts.train import Gpus
from caspi.charts.values import DnsName, Image, NetworkPolicy, Placement, PodMonitor, Resources, Storage, Text, Values


class Vllm(Values):
    """How vLLM is started (engine: vllm)."""

    max_model_len: int = Field(default=4096, ge=256)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    args: list[Text] = []
    """More arguments of `vllm serve`. --trust-remote-code is refused."""


class Autoscaling(Values):
    """A HorizontalPodAutoscaler on CPU use (engine: caspi), or off."""

    enabled: bool = False
    at_most: int = Field(default=4, ge=1, le=1000)
    cpu_percent: int = Field(default=80, ge=1, le=100)


class Benchmark(Values):
    """The benchmark Job that `helm test` runs: every test set of the round through this server, into its records."""

    enabled: bool = True
    image: Image | None = None
    """One with Caspi in it. null: `image`, which is only right for engine: caspi."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    resources: Resources = Resources(cpu="1", memory="4Gi")
    deadline: int = Field(default=14_400, ge=1)
    """Seconds."""


class ServeValues(Values):
    """The values of charts/caspi-serve."""

    round: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{8}$")]
    """The round directory on the claim, for example hebrew-r2-894f2f8c."""
    engine: Literal["caspi", "vllm"] = "caspi"
    """caspi: every family, on CPU or GPU (images/train). vllm: Qwen3-ASR on GPUs (images/serve)."""
    image: Image
    image_pull_secrets: list[DnsName] = []
    replicas: int = Field(default=1, ge=0, le=1000)
    gpus: Gpus | None = None
    resources: Resources = Resources(cpu="2", memory="8Gi")
    shm: Annotated[str, StringConstraints(pattern=r"^[0-9]+(Mi|Gi)$")] = "1Gi"
    placement: Placement = Placement()
    storage: Storage = Storage()
    """The claim with the round; `create` is refused: there would be no model in it."""
    port: int = Field(default=8000, ge=1024, le=65535)
    load_seconds: int = Field(default=600, ge=10)
    """How long loading the model and a first transcription may take."""
    vllm: Vllm = Vllm()
    autoscaling: Autoscaling = Autoscaling()
    benchmark: Benchmark = Benchmark()
    network_policy: NetworkPolicy = NetworkPolicy()
    pod_monitor: PodMonitor = PodMonitor()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
