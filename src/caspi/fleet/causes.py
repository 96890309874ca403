"""Why a pod does not do what it should: one cause, in one line, with the way out. Pure; docs/status.md is the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from caspi.fleet.api import Object
from caspi.fleet.endings import Said, container_end, container_statuses
from caspi.fleet.names import CauseId
from caspi.fleet.objects import ago, conditions, events_about, role, seconds_between
from caspi.fleet.refusals import one_line
from caspi.fleet.snapshot import Snapshot, is_ready


@dataclass(frozen=True, slots=True)
class Cause:
    """`id` is stable. `blocks` is False for what passes by itself."""

    id: CauseId
    who: str
    line: str
    blocks: bool = True


def pod_cause(pod: Object, look: Snapshot) -> Cause | None:
    """What keeps this pod from running, or ended it; None when nothing does."""
    rules: tuple[Callable[[Object, Snapshot], Said], ...] = (
        _leaving,
        _thrown_out,
        _not_placed,
        _not_begun,
        _not_mounted,
        _ended,
        _node_silent,
    )
    for rule in rules:
        if said := rule(pod, look):
            return Cause(said[0], role(pod, look.name), said[1], said[2])
    return None


def _leaving(pod: Object, look: Snapshot) -> Said:
    due = pod["metadata"].get("deletionTimestamp")
    if not due:
        return None
    node, name = pod["spec"].get("nodeName"), pod["metadata"]["name"]
    free = f"kubectl delete pod {name} -n {look.namespace} --grace-period=0 --force"
    if look.nodes.get(node, "True") != "True":
        state = "is gone" if look.nodes[node] == "gone" else "does not answer"
        return (
            "node-lost",
            f"node {node} {state}, so its pod can't be ended and its place stays empty: if the machine is really off, "
            f"{free}",
            True,
        )
    overdue = seconds_between(due, look.at)
    if overdue > 60:
        return (
            "stuck-terminating",
            f"should have ended {ago(due, look.at)} ago: if node {node} is really off, {free}",
            True,
        )
    left = f" (at most {-overdue:.0f} s more)" if overdue < 0 else ""
    return "terminating", f"is asked to end and saves a checkpoint first{left}; then it is replaced", False


def _thrown_out(pod: Object, look: Snapshot) -> Said:
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    target = conditions(pod).get("DisruptionTarget", {})
    reason, message = status.get("reason"), one_line(status.get("message") or target.get("message", ""))
    if reason == "Evicted":
        more = "memory or disk of the node ran short; it is started anew and goes on from the last checkpoint"
        if "ephemeral" in message or "emptyDir" in message:
            more = "what is written outside of /rounds counts: raise workers.resources.ephemeralStorage (--values)"
        return "evicted", f"evicted: {message}; {more}", True
    if reason in ("Preempting", "Preempted") or target.get("reason") == "PreemptionByScheduler":
        return (
            "preempted",
            f"made way for a pod of higher priority ({message}); it is started anew when there is room, or give it a "
            "priority of its own (workers.placement.priorityClass)",
            True,
        )
    if reason and not _terminated(pod):
        return "pod-failed", f"{reason}: {message}; it is started anew", True
    return None


def _not_placed(pod: Object, look: Snapshot) -> Said:
    placed = conditions(pod).get("PodScheduled", {})
    if pod.get("status", {}).get("phase") != "Pending" or placed.get("status") != "False":
        return None
    message = one_line(re.split(r"\.? (?:no new claims|preemption:)", placed.get("message", ""))[0]).rstrip(".")
    waits = f"Pending {ago(placed.get('lastTransitionTime'), look.at)}"
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return (
            "claim-missing",
            f"{waits}: there is no PersistentVolumeClaim {match[1]} in {look.namespace}; make it (manifests/), or name "
            "another (kubernetes.storage.claim)",
            True,
        )
    if "unbound" in message and "PersistentVolumeClaim" in message:
        return _unbound(pod, look, waits)
    if match := re.search(r"Insufficient ([\w/-]+(?:\.[\w/-]+)*)", message):
        resource = match[1]
        return (
            _SCARCE.get(resource, "insufficient-gpu"),
            f"{waits}: no node has {_asked(pod, resource)} free {resource}{_quota(resource, look)}; wait, add a node, "
            f"or ask for less ({message})",
            True,
        )
    if "untolerated taint" in message:
        return (
            "node-taint",
            f"{waits}: nodes keep it off by a taint; add workers.placement.tolerations (--values) ({message})",
            True,
        )
    if "affinity/selector" in message or "didn't match" in message:
        asked = ", ".join(f"{key}={value}" for key, value in pod["spec"].get("nodeSelector", {}).items())
        return (
            "node-selector",
            f"{waits}: no node has {asked or 'what its affinity asks for'}; `kubectl get nodes --show-labels` has what "
            f"there is, gpu.product in the cluster file is what is asked for ({message})",
            True,
        )
    return "unschedulable", f"{waits}: {message}", True


_SCARCE: dict[str, CauseId] = {
    "cpu": "insufficient-cpu",
    "memory": "insufficient-memory",
    "ephemeral-storage": "insufficient-disk",
}


def _unbound(pod: Object, look: Snapshot, waits: str) -> Said:
    names = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes", [])
        if "persistentVolumeClaim" in volume
    ]
    claims = [claim for claim in look.claims if claim["metadata"]["name"] in names]
    claim = next((one for one in claims if one.get("status", {}).get("phase") != "Bound"), None)
    if claim is None:
        return "claim-unbound", f"{waits}: its PersistentVolumeClaim is not bound; kubectl describe pvc", True
    named = claim["metadata"]["name"]
    events = events_about(look.events, claim)
    why = one_line(events[-1]["message"], 200) if events else f"phase {claim.get('status', {}).get('phase')}"
    return (
        "claim-unbound",
        f"{waits}: the claim {named} has no volume yet ({why}); it needs a storage class or a volume that fits",
        True,
    )


def _not_begun(pod: Object, look: Snapshot) -> Said:
    for status in container_statuses(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in (
            "ErrImagePull",
            "ImagePullBackOff",
            "ErrImageNeverPull",
            "InvalidImageName",
            "RegistryUnavailable",
        ):
            return _no_image(pod, look, status["image"], reason, message)
        if reason == "CreateContainerConfigError":
            return _no_config(pod, look, message)
        if reason == "CrashLoopBackOff":
            said = container_end(pod, look, status)
            return said or ("crash-loop", f"{status['name']} ends again and again: {one_line(message)}", True)
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return "container-start", f"{status['name']} can't be started: {reason}: {one_line(message)}", True
    return None


def _no_image(pod: Object, look: Snapshot, image: str, reason: str, message: str) -> Said:
    failures = [event["message"] for event in events_about(look.events, pod, "Failed") if "pull" in event["message"]]
    told = " ".join([message, *failures[-1:]])
    ways = [
        (r"not found|manifest unknown|NotFound", "the registry has no such image; push it, or correct the digest"),
        (
            r"401|403|[Uu]nauthorized|denied|authorization failed|pull access",
            "the registry wants a password; name its Secret under imagePullSecrets (--values)",
        ),
        (
            r"no such host|dial tcp|i/o timeout|connection refused|TLS handshake|deadline exceeded|x509|no route",
            "the node does not reach the registry; check its address, the network and its certificate",
        ),
        (r"no match for platform|exec format", "it is not built for this node's processor"),
    ]
    if reason == "InvalidImageName":
        why = "that is no image name; correct kubernetes.images"
    elif reason == "ErrImageNeverPull":
        why = "it is not on the node, and pullPolicy is Never"
    else:
        known = next((way for pattern, way in ways if re.search(pattern, told)), None)
        why = known or one_line(failures[-1] if failures else message)
    return "image-pull", f"image {image} can't be pulled ({reason}): {why}", True


def _no_config(pod: Object, look: Snapshot, message: str) -> Said:
    if match := re.search(r'secret "([^"]+)" not found', message):
        literals = " ".join(f"--from-literal={key}=..." for key in _keys_wanted(pod, match[1]))
        return (
            "secret-missing",
            f"there is no Secret {match[1]} in {look.namespace}: kubectl create secret generic {match[1]} "
            f"-n {look.namespace} {literals or '--from-literal=KEY=...'}; the pod goes on by itself",
            True,
        )
    if match := re.search(r"couldn't find key (\S+) in Secret (\S+)", message):
        return (
            "secret-key-missing",
            f"the Secret {match[2]} has no key {match[1]}; add it, or correct kubernetes.secrets",
            True,
        )
    return "container-config", one_line(message), True


def _keys_wanted(pod: Object, secret: str) -> list[str]:
    """The keys of a Secret that a pod's variables come from."""
    containers = [*pod["spec"].get("initContainers", []), *pod["spec"].get("containers", [])]
    references = [
        variable.get("valueFrom", {}).get("secretKeyRef", {})
        for container in containers
        for variable in container.get("env", [])
    ]
    return sorted({one["key"] for one in references if one.get("name") == secret})


def _not_mounted(pod: Object, look: Snapshot) -> Said:
    """Placed on a node, and its containers are not made yet."""
    if pod.get("status", {}).get("phase") != "Pending" or not pod["spec"].get("nodeName"):
        return None
    if any("running" in one.get("state", {}) for one in container_statuses(pod)):
        return None
    reasons = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "FailedBinding")
    failed = events_about(look.events, pod, *reasons)
    if not failed:
        return None
    message = one_line(failed[-1]["message"])
    if match := re.search(r'secret "([^"]+)" not found', message):
        return "secret-missing", f"there is no Secret {match[1]} in {look.namespace}; make it", True
    if failed[-1]["reason"] == "FailedCreatePodSandBox":
        return "sandbox", f"node {pod['spec']['nodeName']} can't start it: {message}", True
    return "volume-mount", f"a volume can't be mounted on node {pod['spec']['nodeName']}: {message}", True


def _ended(pod: Object, look: Snapshot) -> Said:
    for status in container_statuses(pod):
        if said := container_end(pod, look, status):
            return said
    return None


def _node_silent(pod: Object, look: Snapshot) -> Said:
    node = pod["spec"].get("nodeName")
    if is_ready(pod) or look.nodes.get(node, "True") == "True" or pod["status"].get("phase") in ("Failed", "Succeeded"):
        return None
    waits = next(
        (
            one.get("tolerationSeconds")
            for one in pod["spec"].get("tolerations", [])
            if one.get("key") == "node.kubernetes.io/unreachable"
        ),
        300,
    )
    return "node-lost", f"node {node} does not answer; the pod is given up after {waits} s", True


def _terminated(pod: Object) -> bool:
    return any("terminated" in one.get("state", {}) for one in container_statuses(pod))


def _asked(pod: Object, resource: str) -> str:
    asked = [one.get("resources", {}).get("requests", {}).get(resource) for one in pod["spec"]["containers"]]
    return " + ".join(str(one) for one in asked if one) or "enough"


def _quota(resource: str, look: Snapshot) -> str:
    """What of the namespace's quota for it is used."""
    for quota in look.quotas:
        hard, used = quota.get("status", {}).get("hard", {}), quota.get("status", {}).get("used", {})
        for name in (f"requests.{resource}", resource, f"limits.{resource}"):
            if name in hard:
                named = f"{look.namespace}/{quota['metadata']['name']}"
                return f" (quota {named}: {used.get(name, 0)} of {hard[name]} used)"
    return ""
