"""What API objects say, in the words of people. Pure."""

from __future__ import annotations

import re
from datetime import datetime

from caspi.fleet.api import Object


def conditions(thing: Object) -> dict[str, Object]:
    """By type; the empty dict when there are none yet."""
    return {one["type"]: one for one in thing.get("status", {}).get("conditions") or []}


def holds(thing: Object, condition: str) -> bool:
    return conditions(thing).get(condition, {}).get("status") == "True"


def seconds_between(earlier: str | None, later: str) -> float:
    """0 where a time is not known."""
    return (_time(later) - _time(earlier)).total_seconds() if earlier else 0.0


def ago(earlier: str | None, later: str) -> str:
    """4 min, 2 h."""
    return duration(seconds_between(earlier, later))


def duration(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def event_time(event: Object) -> str:
    return str(
        event.get("lastTimestamp")
        or (event.get("series") or {}).get("lastObservedTime")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
    )


def events_about(events: list[Object], thing: Object, *reasons: str) -> list[Object]:
    """Those of this very object, not of one that bore its name before; the newest last."""
    uid = thing["metadata"].get("uid")
    found = [
        event
        for event in events
        if event.get("involvedObject", {}).get("uid") == uid and (not reasons or event.get("reason") in reasons)
    ]
    return sorted(found, key=event_time)


def role(pod: Object, name: str) -> str:
    """worker-2, gate, prepare-3: what a pod of the round `name` is called."""
    own = str(pod["metadata"]["name"]).removeprefix(f"{name}-")
    kind = own.split("-")[0]
    if kind == "worker":
        return own
    index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
    return f"{kind}-{index}" if index is not None else kind


def _time(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))
