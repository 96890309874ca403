"""The words that both charts share. In values.yaml they are camelCase, as in every chart."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from caspi.spec.values import Frozen

Text = Annotated[str, StringConstraints(min_length=1)]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
"""A name of a Kubernetes object."""
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|K|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""An amount as Kubernetes writes it: 500m, 48, 64Gi."""


def _no_secret(name: str) -> str:
    if re.search("TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL", name):
        raise ValueError("looks like a secret: give it by reference, under `secrets`")
    return name


VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$"), AfterValidator(_no_secret)]
"""An environment variable that is no secret. Helm's expressions know no negation: the templates refuse those too."""


class Values(Frozen):
    """Base of all values: camelCase names, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)


class Image(Values):
    """An image, pinned by digest: the same bytes on every node and in every rerun."""

    repository: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$")]
    """Registry and path, without a tag."""
    digest: Digest
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"

    @property
    def reference(self) -> str:
        return f"{self.repository}@{self.digest}"


class SecretKey(Values):
    """A key of a Secret that exists in the namespace. The charts never take a secret's value."""

    name: DnsName
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$")]


class Secrets(Values):
    """Secrets by reference: each becomes an environment variable of the containers that need it."""

    huggingface: SecretKey | None = None
    """HF_TOKEN: to download gated models and data. Only where something is downloaded."""
    wandb: SecretKey | None = None
    """WANDB_API_KEY: for `track: [wandb]`."""


class Resources(Values):
    """What a container asks for; it is also its limit, so that nobody takes another's memory."""

    cpu: Quantity
    memory: Quantity
    ephemeral_storage: Quantity | None = None


class Toleration(Values):
    """As in Kubernetes."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class Placement(Values):
    """Where pods may run."""

    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    priority_class: DnsName | None = None


class NewClaim(Values):
    """A PersistentVolumeClaim that the chart makes, and keeps when it is uninstalled."""

    size: Quantity
    storage_class: DnsName | None = None
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
    labels: dict[str, str] = {}
    """That its Prometheus selects by."""
    interval: Annotated[str, StringConstraints(pattern=r"^[0-9]+(s|m)$")] = "15s"


class Metrics(Values):
    """The engine's metrics, from each worker at /metrics."""

    port: int = Field(default=9400, ge=1024, le=65535)
    pod_monitor: PodMonitor = PodMonitor()


class NetworkPolicy(Values):
    """Who may talk to the pods. Needs a network plugin that enforces it."""

    enabled: bool = True
    metrics_from: dict[str, str] = {}
    """Labels of the namespaces that may read metrics; none: every namespace."""


def schema(kind: type[Values], title: str) -> dict[str, Any]:
    """The JSON Schema of a chart, as Helm checks it. `global` is Helm's own."""
    made = kind.model_json_schema(by_alias=True)
    made["properties"]["global"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": title}
