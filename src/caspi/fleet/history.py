"""Workers that are gone, as the events of their job remember them. Pure."""

from __future__ import annotations

import re

from caspi.fleet.api import Object
from caspi.fleet.causes import Cause, pod_cause
from caspi.fleet.names import CauseId
from caspi.fleet.objects import ago, event_time, events_about, holds, seconds_between
from caspi.fleet.refusals import one_line
from caspi.fleet.snapshot import Snapshot, is_ready

REMEMBERED = 3600
"""Seconds for which a worker that was replaced is mentioned."""
OFTEN = 4
"""Pods that were deleted and said nothing; fewer may be a person, or a drain."""


def ended_before(look: Snapshot) -> list[Cause]:
    """Workers that were replaced: their pods are gone, events remember for an hour how they ended."""
    if look.job is None or holds(look.job, "Failed"):
        return []
    return [*_exited(look, look.job), *_evicted(look), *_never_began(look, look.job)]


def _never_began(look: Snapshot, job: Object) -> list[Cause]:
    """Pods that fail in their init container: the operator makes them anew at once, and nothing of them is left."""
    about = [one for one in events_about(look.events, job) if seconds_between(event_time(one), look.at) < REMEMBERED]
    if any(one.get("reason") == "ExitedWithCode" for one in about) or _evicted(look):
        return []
    often = sum(int(one.get("count") or 1) for one in about if one.get("reason") == "SuccessfulDeletePod")
    if often < OFTEN or any(is_ready(pod) for pod in look.pods):
        return []
    return [
        Cause(
            "fetch-failed",
            "job",
            f"{often} pods were ended before they trained, by their init container `fetch` failing: "
            f"`caspi logs {look.name} --follow` shows why; mend it, or `caspi cancel {look.name}`",
        )
    ]


_THROWN_OUT: dict[str, CauseId] = {
    "Evicted": "evicted",
    "Preempted": "preempted",
    "TaintManagerEviction": "node-lost",
}


def _evicted(look: Snapshot) -> list[Cause]:
    there = {pod["metadata"]["uid"] for pod in look.pods}
    last: dict[str, Object] = {}
    for event in sorted(look.events, key=event_time):
        about = event.get("involvedObject", {})
        if event.get("reason") in _THROWN_OUT and about.get("uid") not in there:
            last[str(about.get("name"))] = event
    return [
        Cause(
            _THROWN_OUT[event["reason"]],
            pod.removeprefix(f"{look.name}-"),
            f"{one_line(event['message'], 200).rstrip('.')} ({ago(event_time(event), look.at)} ago); started anew",
            False,
        )
        for pod, event in sorted(last.items())
        if "-worker-" in pod and seconds_between(event_time(event), look.at) < REMEMBERED
    ]


def _exited(look: Snapshot, job: Object) -> list[Cause]:
    times: dict[str, list[tuple[str, int]]] = {}
    for event in events_about(look.events, job, "ExitedWithCode"):
        match = re.match(r"Pod: [^.]+\.(\S+) exited with code (-?\d+)", event.get("message", ""))
        if match and match[2] != "0":
            times.setdefault(match[1], []).append((event_time(event), int(match[2])))
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"].get("template", {}).get("spec", {})
    limit = (worker.get("containers") or [{}])[0].get("resources", {}).get("limits", {}).get("memory", "none")
    words = {203: "asked to end", 197: "hung", 137: f"killed: out of memory at its limit {limit}, or by hand"}
    found = []
    for pod, ends in sorted(times.items()):
        when, code = max(ends)
        if any(one["metadata"]["name"] == pod and pod_cause(one, look) for one in look.pods):
            continue
        why = f" ({words[code]})" if code in words else ""
        often = f", {len(ends)} times within the hour" if len(ends) > 1 else ""
        line = f"its pod ended with {code}{why} {ago(when, look.at)} ago{often}, and was started anew"
        found.append(Cause("replaced", pod.removeprefix(f"{look.name}-"), line, False))
    return found
