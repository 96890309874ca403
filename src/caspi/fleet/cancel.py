"""Take a round off a cluster. What it wrote stays on its claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from caspi.errors import StageFailed
from caspi.fleet.api import PYTORCHJOBS, Api, NotFound, Object
from caspi.fleet.argo import starts
from caspi.fleet.causes import pod_cause
from caspi.fleet.diagnose import claim_name, directory
from caspi.fleet.helm import Helm, read_release
from caspi.fleet.snapshot import JOBS, PODS, ROUND, Snapshot, read_snapshots

OWNED = (
    PYTORCHJOBS,
    JOBS,
    "/api/v1/namespaces/{namespace}/pods",
    "/api/v1/namespaces/{namespace}/services",
    "/api/v1/namespaces/{namespace}/configmaps",
    "/api/v1/namespaces/{namespace}/serviceaccounts",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/podmonitors",
)
"""All that a release of caspi-train, and the training operator for it, may make: but the claim."""
LONGEST_GRACE = 3600


def cancel(api: Api, helm: Helm, name: str, wait: bool, say: Callable[[str], None]) -> bool:
    """Uninstall the release, and remove what a cut off install or a deleted release left. False when nothing was there.

    With `wait`, until the last pod is gone: workers save a checkpoint first. Raises StageFailed when one never goes.
    """
    looks = read_snapshots(api, name)
    release = read_release(api, name, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    if release:
        helm.uninstall(name)
    left = remove_left(api, name)
    if not looks and not release and not left:
        return False
    look = looks[0] if looks else None
    if look and look.job:
        say(f"{directory(look)} stays on the claim{claim_name(look)}; {starts(look)} goes on from its last checkpoint")
    if wait:
        _wait(api, name, look, say)
    return True


def remove_left(api: Api, name: str) -> int:
    """Delete what bears the release's labels; how many objects that were."""
    found = 0
    for path in OWNED:
        for one in _labelled(api, path, name):
            if not one.get("deletionTimestamp") and not one.get("ownerReferences"):
                found += api.delete(f"{path}/{one['name']}", one["uid"])
    return found


def _labelled(api: Api, path: str, name: str) -> list[Object]:
    selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/name=caspi-train"
    try:
        return api.names(path, labelSelector=selector)
    except NotFound:
        return []


def _wait(api: Api, name: str, look: Snapshot | None, say: Callable[[str], None]) -> None:
    until, said = time.monotonic() + _grace(look) + 90, ""
    services = "/api/v1/namespaces/{namespace}/services"
    while True:
        pods = api.names(PODS, labelSelector=f"{ROUND}={name},app.kubernetes.io/name=caspi-train")
        others = [one for path in (PYTORCHJOBS, JOBS) for one in _labelled(api, path, name)]
        others += api.names(services, labelSelector=f"training.kubeflow.org/job-name={name}")
        if not pods and not others:
            return
        names = ", ".join(sorted(str(one["name"]) for one in [*pods, *others]))
        if time.monotonic() > until:
            raise StageFailed(_stuck(api, name, names))
        if names != said:
            say(f"waiting until they are gone: {names}")
            said = names
        time.sleep(1)


def _stuck(api: Api, name: str, names: str) -> str:
    for look in read_snapshots(api, name):
        for pod in look.pods:
            if (cause := pod_cause(pod, look)) and cause.blocks:
                return f"{cause.who}: {cause.line}"
    return f"still there: {names}; `kubectl describe` says why"


def _grace(look: Snapshot | None) -> int:
    """Seconds that its pods may take to end."""
    return (
        max((int(pod["spec"].get("terminationGracePeriodSeconds", 30)) for pod in look.pods), default=30)
        if look
        else 30
    )
