"""A lock as Flux's objects: the chart by digest, and a release that trains once. docs/flux.md says why each field."""

from __future__ import annotations

from typing import Any

from caspi.errors import UserError
from caspi.fleet.snapshot import DIGEST, ROUND
from caspi.locks.model import Lock, yaml_text

CHART_LAYER = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
INTERVAL = "1h"
"""How often Flux looks again. Nothing moves: the chart is pinned by digest and the values are in the object."""


def manifests(lock: Lock, where: str) -> str:
    """OCIRepository and HelmRelease as YAML documents. UserError when the chart is in no registry."""
    if lock.chart.oci is None:
        raise UserError(
            "chart.oci: none, and Flux takes charts from a registry; `make charts REGISTRY=oci://...` pushes it, and "
            "`caspi lock ... --chart oci://...@sha256:...` names it",
            where=where,
        )
    head = f"# Made by `caspi flux` from the lock of {lock.round}; make it again instead of editing it.\n"
    return head + "---\n".join(yaml_text(one) for one in (_chart(lock), _release(lock)))


def _chart(lock: Lock) -> dict[str, Any]:
    assert lock.chart.oci, "manifests() asks for it"
    return {
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "OCIRepository",
        "metadata": _metadata(lock),
        "spec": {
            "interval": INTERVAL,
            "url": lock.chart.oci.repository,
            "ref": {"digest": lock.chart.oci.digest},
            "layerSelector": {"mediaType": CHART_LAYER, "operation": "copy"},
        },
    }


def _release(lock: Lock) -> dict[str, Any]:
    # A failed install or upgrade stays as it is, to be looked at: remedied, it would be uninstalled and installed
    # again, and the job in it started anew. Waiting is not Helm's: a round takes days, and a controller that is
    # restarted meanwhile would call the release failed.
    once = {
        "disableWait": True,
        "disableWaitForJobs": True,
        "strategy": {"name": "RemediateOnFailure"},
    }
    return {
        "apiVersion": "helm.toolkit.fluxcd.io/v2",
        "kind": "HelmRelease",
        "metadata": _metadata(lock),
        "spec": {
            "interval": INTERVAL,
            "releaseName": lock.round,
            "chartRef": {"kind": "OCIRepository", "name": lock.round},
            "install": {**once, "remediation": {"retries": 0, "remediateLastFailure": False}},
            "upgrade": {**once, "remediation": {"retries": 0, "remediateLastFailure": False}},
            "driftDetection": {
                "mode": "warn",
                "ignore": [{"paths": ["/spec/runPolicy/suspend"], "target": {"kind": "PyTorchJob"}}],
            },
            "values": lock.values,
        },
    }


def _metadata(lock: Lock) -> dict[str, Any]:
    return {
        "name": lock.round,
        "namespace": lock.namespace,
        "labels": {ROUND: lock.round},
        "annotations": {DIGEST: lock.digest},
    }
