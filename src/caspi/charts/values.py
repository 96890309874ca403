"""The words that both charts share. In values.yaml they are camelCase, as in every chart."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from caspi.spec.values import Frozen

Text = Annotated[str, StringConstraints(min_length=1)]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
"""A name of a Kubernetes object."""
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""An amount as Kubernetes writes it: 500m, 48, 64Gi."""


def _no_secret(name: str) -> str:
    if re.search("TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL", name):
        raise ValueError("looks like a secret: give it by reference, under `secrets`")
    return name


LabelName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]
"""The name of a label or an annotation: nvidia.com/gpu.product."""
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Labels = dict[LabelName, LabelValue]
ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")]
"""What a device plugin calls its devices: nvidia.com/gpu."""


VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$"), AfterValidator(_no_secret)]
"""An environment variable that is no secret. Helm's expressions know no negation: the templates refuse those too."""


class Values(Frozen):
    """Base of all values: camelCase names, nothing unknown, nothing converted ("3" is no number for Helm either)."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, strict=True)


class Image(Values):
    """An image, pinned by digest: the same bytes on every node and in every rerun."""

    repository: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$")]
    """Registry and path, without a tag."""
    digest: Digest
    """`make images` prints it."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """As in Kubernetes. A digest never changes, so a node needs it once."""

    @property
    def reference(self) -> str:
        return f"{self.repository}@{self.digest}"


class SecretKey(Values):
    """A key of a Secret that exists in the namespace. The charts never take a secret's value."""

    name: DnsName
    """Of the Secret."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$")]
    """In the Secret."""


class Secrets(Values):
    """Secrets by reference: each becomes an environment variable of the containers that need it."""

    huggingface: SecretKey | None = None
    """HF_TOKEN: to download gated models and data. Only where something is downloaded."""
    wandb: SecretKey | None = None
    """WANDB_API_KEY: for `track: [wandb]`."""


class Resources(Values):
    """What a container asks for; it is also its limit, so that nobody takes another's memory."""

    cpu: Quantity
    """Cores: 500m is half of one."""
    memory: Quantity
    """For example 64Gi. A container that takes more is killed."""
    ephemeral_storage: Quantity | None = None
    """Of the node's disk. null: no limit of its own."""


class Toleration(Values):
    """As in Kubernetes."""

    key: LabelName | None = None
    """Of the taint; null with Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists takes no value."""
    value: LabelValue | None = None
    """Of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """null: every effect."""
    toleration_seconds: int | None = None
    """How long, of a NoExecute taint. null: for ever."""


class Placement(Values):
    """Where pods may run."""

    node_selector: Labels = {}
    """Labels that a node must have."""
    tolerations: list[Toleration] = []
    """Of taints that nodes have."""
    priority_class: DnsName | None = None
    """Of the pods."""


class NewClaim(Values):
    """A PersistentVolumeClaim that the chart makes, and keeps when it is uninstalled."""

    size: Quantity
    """For example 500Gi."""
    storage_class: DnsName | None = None
    """null: the cluster's default one."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteOnce only where all pods run on one node."""


class Storage(Values):
    """Where round directories live. All pods mount it at /rounds."""

    claim: DnsName = "rounds"
    """A PersistentVolumeClaim that exists; or, with `create`, the name of the one to make."""
    create: NewClaim | None = None


class PodMonitor(Values):
    """For the Prometheus operator."""

    enabled: bool = False
    """Needs its CRDs."""
    labels: Labels = {}
    """That its Prometheus selects by."""
    interval: Annotated[str, StringConstraints(pattern=r"^[0-9]+(s|m)$")] = "15s"
    """Between two looks."""


class Metrics(Values):
    """The engine's metrics, from each worker at /metrics."""

    port: int = Field(default=9400, ge=1024, le=65535)
    """Of the workers' pods."""
    pod_monitor: PodMonitor = PodMonitor()


class NetworkPolicy(Values):
    """Who may talk to the pods. Needs a network plugin that enforces it."""

    enabled: bool = True
    """Only pods of the same round reach each other, on every port (NCCL picks them); to the outside all is open."""
    metrics_from: Labels = {}
    """Labels of the namespaces that may read metrics; none: every namespace."""
