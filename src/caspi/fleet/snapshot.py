"""One look at everything of a round that a cluster knows, as plain dicts. Reading is all that happens here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from caspi.errors import UserError
from caspi.fleet.api import PYTORCHJOBS, Api, Broken, Forbidden, NotFound, Object
from caspi.records.heartbeat import parse_heartbeat

ROUND, DIGEST = "caspi.dev/round", "caspi.dev/spec-digest"
PODS = "/api/v1/namespaces/{namespace}/pods"
JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
EVENTS = "/api/v1/namespaces/{namespace}/events"
CLAIMS = "/api/v1/namespaces/{namespace}/persistentvolumeclaims"
QUOTAS = "/api/v1/namespaces/{namespace}/resourcequotas"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/workloads"
MOST_TAILS = 8
"""So many workers are asked for a heartbeat: it comes from one of them."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A round on a cluster at one moment. Objects are as the API gives them."""

    name: str
    namespace: str
    at: str
    """As 2026-11-21T15:00:00Z."""
    context: str | None = None
    job: Object | None = None
    """The PyTorchJob."""
    pods: list[Object] = field(default_factory=list)
    jobs: list[Object] = field(default_factory=list)
    """Those that prepare: NAME-prepare..., NAME-gate..."""
    events: list[Object] = field(default_factory=list)
    claims: list[Object] = field(default_factory=list)
    """Of the namespace."""
    quotas: list[Object] = field(default_factory=list)
    workloads: list[Object] = field(default_factory=list)
    """Of Kueue, for this job."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Whether a node that pods are on is Ready: True, False or Unknown."""
    tails: dict[str, list[str]] = field(default_factory=dict)
    """The last lines of a pod's log, where they say something."""
    unread: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Snapshot:
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})


def read_snapshots(api: Api, name: str | None = None) -> list[Snapshot]:
    """The rounds of a namespace, or the one called so; an empty list when there is none.

    The PyTorchJob must be readable; of the rest is taken what may be read.
    """
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    unread: list[str] = []

    def items(path: str, **query: Any) -> list[Object]:
        try:
            return api.items(path, **query)
        except NotFound:
            return []
        except Forbidden as error:
            unread.append(str(error))
            return []

    selector = {"labelSelector": f"{ROUND}={name}" if name else ROUND}
    try:
        trained = api.items(PYTORCHJOBS, **selector)
    except NotFound:
        trained = []
        unread.append("the cluster has no PyTorchJob: the training operator is not installed")
    jobs = [job for job in items(JOBS, **selector) if component(job) in ("gate", "prepare")]
    pods = [pod for pod in items(PODS, **selector) if component(pod) in ("train", "gate", "prepare")]
    names = sorted({round_of(one) for one in (*trained, *jobs, *pods)})
    if not names:
        return []
    events, claims, quotas = items(EVENTS), items(CLAIMS), items(QUOTAS)
    workloads = items(WORKLOADS) if any(_queue(job) for job in trained) else []
    snapshots = []
    for one in names:
        own_pods = sorted((pod for pod in pods if round_of(pod) == one), key=lambda pod: _order(pod_name(pod)))
        own_jobs = [job for job in jobs if round_of(job) == one]
        owners = {one, *(pod_name(pod) for pod in own_pods), *(pod_name(job) for job in own_jobs)}
        claimed = {claim["metadata"]["name"] for claim in claims}
        snapshots.append(
            Snapshot(
                name=one,
                namespace=api.namespace,
                at=at,
                context=api.context,
                job=next((job for job in trained if round_of(job) == one), None),
                pods=own_pods,
                jobs=own_jobs,
                events=[event for event in events if _concerns(event, one, owners | claimed)],
                claims=claims,
                quotas=quotas,
                workloads=[workload for workload in workloads if _owned_by(workload, one)],
                nodes=_nodes(api, own_pods),
                tails=_tails(api, own_pods) if name else {},
                unread=unread,
            )
        )
    return snapshots


def round_of(thing: Object) -> str:
    return str(thing["metadata"].get("labels", {}).get(ROUND, ""))


def component(thing: Object) -> str:
    """train, gate or prepare; other pods of a round (those of `helm test`, of a server) are not looked at."""
    return str(thing["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def pod_name(pod: Object) -> str:
    return str(pod["metadata"]["name"])


def _queue(job: Object) -> str | None:
    queue: str | None = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    return queue


def _order(name: str) -> tuple[str, int]:
    head, _, last = name.rpartition("-")
    return (head, int(last)) if last.isdigit() else (name, 0)


def _concerns(event: Object, name: str, owners: Iterable[str]) -> bool:
    """Also of pods that are gone: their names begin with the round's."""
    about = str(event.get("involvedObject", {}).get("name", ""))
    return about in owners or about.startswith((f"{name}-worker-", f"{name}-gate", f"{name}-prepare"))


def _owned_by(workload: Object, name: str) -> bool:
    return any(
        owner.get("kind") == "PyTorchJob" and owner.get("name") == name
        for owner in workload["metadata"].get("ownerReferences", [])
    )


def _nodes(api: Api, pods: list[Object]) -> dict[str, str]:
    """Only of pods that are not well: a user of a namespace may often not read nodes."""
    found: dict[str, str] = {}
    unwell = [pod for pod in pods if pod["metadata"].get("deletionTimestamp") or not is_ready(pod)]
    for node in {pod["spec"]["nodeName"] for pod in unwell if pod["spec"].get("nodeName")}:
        try:
            conditions = api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
        except NotFound:
            found[node] = "gone"
        except Forbidden:
            break
        else:
            found[node] = next((one["status"] for one in conditions if one["type"] == "Ready"), "Unknown")
    return found


def is_ready(pod: Object) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod.get("status", {}).get("conditions", [])
    )


def _tails(api: Api, pods: list[Object]) -> dict[str, list[str]]:
    """Logs until the first heartbeat, and those of what prepares or ended without a last message."""
    found: dict[str, list[str]] = {}
    asked, beating = 0, False
    for pod in pods:
        phase = pod.get("status", {}).get("phase")
        worker = "-worker-" in pod_name(pod)
        if phase not in ("Running", "Failed", "Succeeded") or (worker and (beating or asked >= MOST_TAILS)):
            continue
        asked += worker
        container = "pytorch" if worker else pod["spec"]["containers"][0]["name"]
        query = {"container": container, "tailLines": 100, "limitBytes": 65536}
        try:
            lines = list(api.lines(f"{PODS}/{pod_name(pod)}/log", **query))
        except (NotFound, UserError, Broken):  # gone, not begun, on a silent node: no log, no news
            continue
        found[pod_name(pod)] = lines
        beating = beating or any(parse_heartbeat(line) for line in lines)
    return found
