"""PyTorchJobs as a real API server and operator made them: one of each state, for tests without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NOISE = ("managedFields",)
SHORTENED = ("pytorchReplicaSpecs",)
"""Of the spec: no health depends on what a pod is made of."""


def state(job: dict[str, Any]) -> str:
    """The name under which a job is recorded."""
    status = job.get("status") or {}
    true = {one["type"] for one in status.get("conditions", []) if one["status"] == "True"}
    workers = (status.get("replicaStatuses") or {}).get("Worker")
    if "Failed" in true:
        return "failed"
    if "Succeeded" in true:
        return "succeeded"
    if job["spec"]["runPolicy"].get("suspend"):
        return "created" if not status else "suspended-again" if workers else "suspended"
    if "Restarting" in true:
        return "restarting"
    return "running" if "Running" in true else "released"


def record(jobs: Iterable[dict[str, Any]], folder: Path) -> None:
    """Write the last one of each state that was seen."""
    folder.mkdir(exist_ok=True)
    for name, job in {state(job): job for job in jobs}.items():
        metadata = {key: value for key, value in job["metadata"].items() if key not in NOISE}
        annotations = metadata.get("annotations", {})
        annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        spec = {key: value for key, value in job["spec"].items() if key not in SHORTENED}
        small = {**job, "metadata": metadata, "spec": spec}
        (folder / f"{name}.json").write_text(json.dumps(small, indent=1, sort_keys=True) + "\n")
