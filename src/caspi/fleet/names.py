"""The names of all causes. They are stable: scripts read them from `--json`, and docs/status.md explains each."""

from __future__ import annotations

from typing import Literal

RefusalId = Literal[
    "quota-exceeded",
    "pod-security",
    "webhook-denied",
    "webhook-down",
    "no-operator",
    "chart-refused",
    "not-ours",
    "no-namespace",
    "forbidden",
    "unauthorized",
    "no-context",
    "untrusted",
    "overloaded",
    "unreachable",
]
"""What an API server, a webhook or Helm refuses."""
CauseId = (
    RefusalId
    | Literal[
        "gate-caution",
        "gate-refused",
        "preparation-failed",
        "queued",
        "insufficient-gpu",
        "insufficient-cpu",
        "insufficient-memory",
        "insufficient-disk",
        "node-selector",
        "node-taint",
        "unschedulable",
        "claim-missing",
        "claim-unbound",
        "claim-full",
        "volume-mount",
        "sandbox",
        "image-pull",
        "secret-missing",
        "secret-key-missing",
        "container-config",
        "container-start",
        "crash-loop",
        "fetch-failed",
        "pods-refused",
        "operator-down",
        "out-of-memory",
        "evicted",
        "preempted",
        "node-lost",
        "terminating",
        "stuck-terminating",
        "replaced",
        "stopped",
        "hang",
        "crash",
        "bad-input",
        "stage-failed",
        "diverged",
        "out-of-budget",
        "deadline",
        "retries-spent",
        "killed",
        "ended",
        "pod-failed",
        "job-failed",
    ]
)
"""What keeps a job, a Job or a pod from its work."""
