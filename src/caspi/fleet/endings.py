"""How a container ended: an exit code of docs/exit-codes.md and its last words, with the way out. Pure."""

from __future__ import annotations

import re

from caspi.fleet.api import Object
from caspi.fleet.argo import again, more_memory, to_sign
from caspi.fleet.names import CauseId
from caspi.fleet.refusals import one_line
from caspi.fleet.snapshot import Snapshot
from caspi.records.heartbeat import LastMessage, parse_last_message

Said = tuple[CauseId, str, bool] | None
"""id, line, and whether it blocks."""


def container_end(pod: Object, look: Snapshot, status: Object) -> Said:
    ended = status.get("state", {}).get("terminated")
    if ended is None and "running" not in status.get("state", {}):
        ended = status.get("lastState", {}).get("terminated")
    if ended is None or ended.get("exitCode") == 0:
        return None
    name = status["name"]
    last = parse_last_message(ended.get("message"))
    if ended.get("reason") == "OOMKilled":
        limit = _limits(pod, name).get("memory", "?")
        line = f"OOMKilled: out of memory (limit {limit}); {more_memory(look)}{_resumes(last, look)}"
        return "out-of-memory", line, True
    tail = [line for line in look.tails.get(pod["metadata"]["name"], []) if line.strip()]
    told = last.line if last else (ended.get("message") or "").strip() or (tail[-1] if tail else "")
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        why = (ended.get("message") or "").split("unable to start container process: ")[-1]
        return "container-start", f"{name} can't be started: {one_line(why)}; is it the right image?", True
    if name in {one["name"] for one in pod["spec"].get("initContainers", [])}:
        line = one_line(told.splitlines()[-1] if told else f"ended with {ended['exitCode']}")
        return "fetch-failed", f"{name}: {line}", True
    code = last.code if last else _OURS.get(ended["exitCode"], ended["exitCode"])
    line = one_line(told.splitlines()[-1] if told else "")
    return explained(code, line, look, last, _limits(pod, name).get("memory", ""))


_OURS = {203: 75, 197: 69}
"""What the entrypoint adds 128 to, so that the training operator starts the pod anew."""


def explained(
    code: int, line: str, look: Snapshot, last: LastMessage | None = None, memory: str = ""
) -> tuple[CauseId, str, bool]:
    """id, line and whether it blocks, for an exit code of docs/exit-codes.md and what was said with it.

    What Caspi says itself names its way out; here only comes what the pod can't know. `memory` is its limit.
    """
    on = _resumes(last, look)
    if re.search(r"was started \d+ times since", line):
        return "retries-spent", f"{line}{on}", True
    if re.search(r"out of memory|OutOfMemory|OOMKilled", line, re.IGNORECASE):
        return "out-of-memory", f"{line} (kubernetes.pod.memory in the cluster file, now {memory}){on}", True
    if re.search(r"no space left|ENOSPC|disk quota exceeded", line, re.IGNORECASE):
        return "claim-full", f"{line}{on}", True
    match code:
        case 1:
            return "crash", f"{line or 'ended with 1'}; `caspi logs {look.name}` has the traceback", True
        case 2:
            return "bad-input", line or f"bad input; `caspi logs {look.name}` has the line", True
        case 3:
            return ("gate-caution" if "says CAUTION" in line else "gate-refused"), to_sign(line, look), True
        case 4:
            return (
                "stage-failed",
                f"{line or 'a stage failed'}; when it is mended, {again(look)}{on}",
                True,
            )
        case 5:
            return (
                "diverged",
                f"{line or 'training diverged'}; the best checkpoint is kept; a new round may do better",
                True,
            )
        case 6 if line.startswith("deadline"):
            return "deadline", f"{line}{on}", True
        case 6:
            return "out-of-budget", f"{line or 'the cost limit is reached'}; the best checkpoint is kept", True
        case 69:
            return "hang", f"{line or 'a training process did not answer'}; it is started anew{on}", True
        case 75:
            return "stopped", f"{line or 'was asked to end, and saved a checkpoint'}; it is started anew{on}", False
        case 137 | 143:
            return "killed", f"ended with {code} (killed){': ' + line if line else ''}; it is started anew{on}", True
        case _:
            return "ended", f"ended with {code}{': ' + line if line else ''}", True


def container_statuses(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _limits(pod: Object, container: str) -> dict[str, str]:
    for one in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        if one["name"] == container:
            limits: dict[str, str] = one.get("resources", {}).get("limits", {})
            return limits
    return {}


def _resumes(last: LastMessage | None, look: Snapshot) -> str:
    return f"; it resumes at step {last.checkpoint:,}" if last and last.checkpoint is not None else ""
