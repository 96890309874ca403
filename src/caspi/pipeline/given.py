"""What the pipeline is given: its parameters from a round and a cluster file, and the compiled pipeline itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from caspi.charts.train import Approval
from caspi.charts.values import Storage
from caspi.errors import UserError
from caspi.files import file_digest
from caspi.fleet.values import file_text, train_values
from caspi.pipeline.package import NAME
from caspi.spec import ClusterSpec, RoundSpec


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled pipeline."""

    path: Path
    version: str
    """It is named by its digest: the same file is the same version."""
    parameters: dict[str, bool]
    """Name -> whether it has to be given."""


def parameters(
    spec: RoundSpec, cluster: ClusterSpec, approval: Approval | None = None, where: str = ""
) -> dict[str, Any]:
    """What the pipeline is given. Raises UserError with all that is missing, as for Helm; no secret is among it."""
    train_values(spec, cluster, where=where)
    kubernetes = cluster.kubernetes
    assert kubernetes and kubernetes.images, "train_values asks for them"
    settings, secret = kubernetes.pipelines, kubernetes.secrets.huggingface
    if kubernetes.images.launcher is None:
        raise UserError(
            "kubernetes.images.launcher: missing; the steps around training run in it, and it has Helm "
            "(`make images` prints it)",
            where=where,
        )
    if secret and not secret.endswith("/token"):
        raise UserError(
            f'kubernetes.secrets.huggingface = "{secret}": the pipeline reads the key `token` of that Secret',
            where=where,
        )
    if cluster.data_root is None or not cluster.data_root.startswith("/"):
        raise UserError(
            f"data_root = {cluster.data_root}: steps see no folder of this machine; say where the data is from the "
            "root, for example data_root: /rounds/data",
            where=where,
        )
    # In a pod there is no kubeconfig, and the endpoint of this machine means nothing.
    where_to = cluster.model_dump_json(exclude_defaults=True, exclude={"kubernetes": {"context", "pipelines"}})
    signed = approval or Approval.model_construct(by="", reason="", audit="")
    return {
        "round": file_text(spec.model_dump_json(exclude_none=True)),
        "cluster": file_text(where_to),
        "digest": spec.digest,
        "image": kubernetes.images.train,
        "launcher": kubernetes.images.launcher,
        "trainer": kubernetes.images.launcher,  # it only watches: Helm puts the train image on the cluster
        "train_by": "helm",
        "runs": "/rounds",
        "claim": kubernetes.storage.claim if kubernetes.storage else Storage().claim,
        "approve_by": signed.by,
        "approve_reason": signed.reason,
        "approve_audit": signed.audit,
        **({"huggingface_secret": secret.partition("/")[0]} if secret else {}),
        **({"pull_secret": settings.pull_secret} if settings.pull_secret else {}),
        "node_selector": dict(settings.node_selector),
        "tolerations": [one.model_dump(exclude_none=True) for one in settings.tolerations],
        "benchmark_gpus": str(settings.benchmark_gpus),
    }


def read_package(path: Path) -> Package:
    """Raises UserError when the file is no compiled pipeline of Caspi's."""
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_LOADER))
        found = documents[0]["root"]["inputDefinitions"]["parameters"]
        needed = {name: not (one.get("isOptional") or "defaultValue" in one) for name, one in found.items()}
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        needed = {}
    if path.suffix not in (".yaml", ".yml") or not {"round", "cluster", "digest"} <= set(needed):
        raise UserError(
            "no compiled pipeline of Caspi's: `python -m pipelines.caspi_round -o FILE.yaml` makes one", where=str(path)
        )
    return Package(path, f"{NAME}-{file_digest(path)[:12]}", needed)


def fitting(given: dict[str, Any], package: Package) -> dict[str, Any]:
    """The parameters that this package takes. Raises UserError where one that says something is not among them."""
    missing = [name for name, needed in package.parameters.items() if needed and name not in given]
    unknown = [
        name for name, value in given.items() if name not in package.parameters and value not in ("", "0", {}, [])
    ]
    if missing or unknown:
        said = [f"wants {', '.join(missing)}"] if missing else []
        said += [f"does not take {', '.join(unknown)}"] if unknown else []
        raise UserError(
            f"the pipeline {' and '.join(said)}: it is not of this version of Caspi", where=str(package.path)
        )
    return {name: value for name, value in given.items() if name in package.parameters}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
