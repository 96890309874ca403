"""The values of charts/caspi-train that follow from a round and a cluster file. Pure: no cluster is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

import yaml

from caspi.charts.train import Approval, Gpus, Preparation, Round, TrainValues, Workers
from caspi.charts.values import Image, Resources, SecretKey, Secrets, Storage
from caspi.errors import UserError
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.cluster import Kubernetes, PodResources
from caspi.spec.load import parse
from caspi.spec.models import is_made_here, is_repository

MOUNTS = ("/rounds", "/cache")
"""What pods see of the cluster's disks."""
NO_IMAGES = (
    "kubernetes.images: missing; pods need their image by digest, for example "
    "kubernetes: {images: {train: registry.example.com/asr/caspi-train@sha256:...}} (`make images` prints it)"
)


def train_values(
    spec: RoundSpec, cluster: ClusterSpec, approval: Approval | None = None, where: str = ""
) -> dict[str, Any]:
    """What `helm install NAME charts/caspi-train -f` takes: plain values, only those that differ from the chart's.

    `where` names the cluster file in errors. Raises UserError with everything that is missing.
    """
    kubernetes = cluster.kubernetes or Kubernetes()
    problems = _problems(spec, cluster)
    if problems:
        raise UserError(*problems, where=where)
    assert kubernetes.images, "_problems asks for them"
    values = TrainValues(
        round=Round(name=spec.round, digest=spec.digest, file=file_text(spec.model_dump_json(exclude_none=True))),
        cluster=file_text(cluster.model_dump_json(exclude={"kubernetes"}, exclude_defaults=True)),
        image=_image(kubernetes.images.train),
        launcher=_image(kubernetes.images.launcher) if kubernetes.images.launcher else None,
        workers=_workers(cluster, kubernetes),
        preparation=Preparation(approval=approval),
        storage=Storage(claim=kubernetes.storage.claim) if kubernetes.storage else Storage(),
        secrets=Secrets(huggingface=_secret(kubernetes.secrets.huggingface), wandb=_secret(kubernetes.secrets.wandb)),
        queue=kubernetes.queue,
    )
    plain: dict[str, Any] = values.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return plain


def with_files(values: Mapping[str, Any], files: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """`values` with those of more files (name, content) over them, as Helm does: maps merge, the rest replaces.

    Raises UserError where a file says something that the chart does not take, or changes the round itself.
    """
    merged = dict(values)
    for name, more in files:
        if "round" in more:
            raise UserError("round: follows from the round file; leave it out here", where=name)
        merged = _merge(merged, more)
        parse(merged, TrainValues, name)
    return merged


def values_text(values: Mapping[str, Any]) -> str:
    """YAML for people and for Helm; texts of several lines as blocks."""
    return yaml.dump(dict(values), Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=120)


def file_text(json_text: str) -> str:
    """A round or a cluster, from its JSON, as the text of a file that pods and pipelines are given."""
    return yaml.safe_dump(json.loads(json_text), sort_keys=False, allow_unicode=True, width=120)


def _problems(spec: RoundSpec, cluster: ClusterSpec) -> list[str]:
    found = []
    if cluster.kubernetes is None or cluster.kubernetes.images is None:
        found.append(NO_IMAGES)
    if not spec.round[0].isalpha():
        found.append(f'round = "{spec.round}": on Kubernetes a name begins with a letter')
    root = PurePosixPath(cluster.data_root or "")
    paths = [(f"data.sources[{index}].path", source.path) for index, source in enumerate(spec.data.sources)]
    paths += [(f"benchmark.sets[{index}].path", test.path) for index, test in enumerate(spec.benchmark.sets)]
    if not is_repository(spec.model.base) and not is_made_here(spec.model.base):
        paths.append(("model.base", spec.model.base))
    for field, path in paths:
        if path is not None and not normpath(root / path).startswith(tuple(f"{mount}/" for mount in MOUNTS)):
            found.append(
                f'{field} = "{path}": pods see only the claim, mounted at /rounds; put the data there, and say in the '
                "cluster file where: data_root: /rounds/data"
            )
    return found


def _workers(cluster: ClusterSpec, kubernetes: Kubernetes) -> Workers:
    pod = kubernetes.pod or _pod(cluster)
    gpus = Gpus(count=cluster.gpus_per_node, product=cluster.gpu.product) if cluster.gpu else None
    return Workers(
        count=cluster.nodes,
        at_least=kubernetes.nodes_at_least,
        processes=cluster.gpus_per_node or cluster.processes_per_node,
        gpus=gpus,
        resources=Resources(cpu=str(pod.cpu), memory=_quantity(pod.memory)),
        shm=_quantity(pod.shm),
    )


def _pod(cluster: ClusterSpec) -> PodResources:
    """What the processes of a node need: a core each and one for each data worker; `memory` each, and beside a GPU at
    least as much as it has, for weights on their way to it and to a checkpoint; and shared memory for NCCL."""
    processes = cluster.gpus_per_node or cluster.processes_per_node
    memory = max(cluster.memory, cluster.gpu.memory if cluster.gpu else 0)
    shm = (2 * processes if cluster.gpu else 1) * 2**30
    return PodResources(cpu=processes * (1 + cluster.workers), memory=processes * memory + shm, shm=shm)


def _image(reference: str) -> Image:
    repository, digest = reference.split("@")
    return Image(repository=repository, digest=digest)


def _secret(reference: str | None) -> SecretKey | None:
    if reference is None:
        return None
    name, key = reference.split("/", 1)
    return SecretKey(name=name, key=key)


def _quantity(size: int) -> str:
    """Bytes as Kubernetes writes them."""
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        there = merged.get(name)
        merged[name] = _merge(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return merged


class _Blocks(yaml.SafeDumper):
    """Writes a text of several lines as a block, which people can read."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _block)
