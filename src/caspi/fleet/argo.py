"""Rounds that Argo CD made: it keeps them, so what starts one again, or signs its audit, is said to it. Pure."""

from __future__ import annotations

import re

from caspi.fleet.api import Object
from caspi.fleet.snapshot import Snapshot

TRACKED = "argocd.argoproj.io/tracking-id"
"""Annotation of what it made: APPLICATION:GROUP/KIND:NAMESPACE/NAME."""


def application(*things: Object | None) -> str | None:
    """The name of the application that one of them is of."""
    for thing in things:
        if tracked := ((thing or {}).get("metadata", {}).get("annotations") or {}).get(TRACKED):
            return str(tracked).partition(":")[0]
    return None


def application_of(look: Snapshot) -> str | None:
    return application(look.job, *look.jobs)


def starts(look: Snapshot) -> str:
    """What starts a round of which nothing is left on the cluster."""
    kept = application_of(look)
    return f"`argocd app sync {kept}`" if kept else "`caspi submit`"


def again(look: Snapshot) -> str:
    """What to do so that a round that has failed goes on."""
    kept = application_of(look)
    return cancel_and_sync(look.name, kept) if kept else "the same `caspi submit` again"


def cancel_and_sync(name: str, kept: str) -> str:
    """A sync alone would wait for a gate that has passed, and does not run again."""
    return f"`caspi cancel {name}`, then `argocd app sync {kept}`"


def more_memory(look: Snapshot) -> str:
    """Where a worker gets more from."""
    if kept := application_of(look):
        return f"raise workers.resources.memory in helm.parameters of Argo CD's application {kept}, then {again(look)}"
    return f"raise kubernetes.pod.memory in the cluster file, then {again(look)}"


def to_sign(line: str, look: Snapshot) -> str:
    """A gate names the `caspi submit` that signs: a gate of Argo CD's is signed in its application."""
    kept, audit = application_of(look), re.search(r"--approve-audit ([0-9a-f]+)", line)
    if not (kept and audit):
        return line
    way = f"sign audit {audit[1]} in Argo CD's application {kept}: docs/gitops.md"
    return re.sub(r"run `caspi submit [^`]*`", way, line)
