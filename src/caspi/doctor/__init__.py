"""Named checks of everything that costs money when it is found later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from caspi.doctor import data, model, site
from caspi.doctor.check import Check, Lines, Patient
from caspi.spec import ClusterSpec, RoundSpec

__all__ = ["Check", "examine", "render"]

CHECKS: tuple[Callable[[Patient], Lines], ...] = (
    site.check_plan,
    site.check_secrets,
    site.check_pins,
    site.check_packages,
    site.check_gpus,
    site.check_disk,
    data.check_normaliser,
    data.check_language,
    data.check_sources,
    model.check_model,
)


def examine(spec: RoundSpec, cluster: ClusterSpec, file: Path | None, data_root: Path) -> list[Check]:
    """Run every check."""
    patient = Patient(spec, cluster, file, data_root)
    return [
        Check(name=check.__name__.removeprefix("check_"), state=state, line=line)
        for check in CHECKS
        for state, line in check(patient)
    ]


def render(checks: Sequence[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines = [f"{check.state:<8} {check.name:<{width}}  {check.line}" for check in checks]
    blocked = sum(check.state == "blocked" for check in checks)
    lines.append(f"{blocked} blocked" if blocked else "nothing blocks this round")
    return "\n".join(lines) + "\n"
