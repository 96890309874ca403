"""Helm by its program: install or upgrade, the values of a release, uninstall."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.fleet.api import PATIENCE, Api, Object
from caspi.fleet.objects import seconds_between
from caspi.fleet.refusals import as_error, refusal

SECRETS = "/api/v1/namespaces/{namespace}/secrets"


class Busy(Exception):
    """Another operation on the release is going on, or was cut off."""


@dataclass(frozen=True, slots=True)
class Release:
    """The newest revision of a release, as the Secret in which Helm keeps it is labelled."""

    revision: int
    status: str
    """deployed, failed, uninstalling, pending-install, pending-upgrade, pending-rollback."""
    seconds: float
    """Since it was written."""
    secret: str
    uid: str

    @property
    def pending(self) -> bool:
        return self.status.startswith("pending-")


@dataclass(frozen=True, slots=True)
class Helm:
    """The program, for one namespace of one cluster."""

    program: str
    namespace: str
    context: str | None = None

    def install(self, name: str, chart: Path, values: str) -> None:
        """Install a release or upgrade it; a second time changes nothing. Raises Busy, UserError."""
        self._run(["upgrade", "--install", name, str(chart), "--history-max", "5", "-f", "-"], values)

    def values(self, name: str) -> dict[str, Any]:
        """What the release was given; empty when there is none."""
        try:
            answer = self._run(["get", "values", name, "--output", "json"])
        except UserError as error:
            if "not found" in str(error):
                return {}
            raise
        return dict(json.loads(answer) or {})

    def uninstall(self, name: str) -> None:
        """Remove the release and what it made; none is as well."""
        self._run(["uninstall", name, "--ignore-not-found"])

    def _run(self, arguments: list[str], text: str = "") -> str:
        where = ["--namespace", self.namespace] + (["--kube-context", self.context] if self.context else [])
        for wait in (*PATIENCE, None):
            done = subprocess.run(
                [self.program, *arguments, *where], input=text, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return done.stdout
            if "another operation" in done.stderr:
                raise Busy
            known = refusal(done.stderr)
            if wait is None or known is None or not known.passing:
                break
            time.sleep(wait)
        raise as_error(done.stderr, f"namespace {self.namespace}")


def find_helm(namespace: str, context: str | None) -> Helm:
    """HELM, or `helm` of the PATH; UserError when there is none."""
    program = os.environ.get("HELM") or shutil.which("helm")
    if program is None or shutil.which(program) is None:
        named = f"HELM={program}: no such program" if program else "helm not found"
        raise UserError(f"{named}; install Helm 3.14 or later (https://helm.sh), or say HELM=/path/to/helm")
    return Helm(program, namespace, context)


def read_release(api: Api, name: str, at: str) -> Release | None:
    """The newest revision; None when there is none. `at` is now."""
    found: list[Object] = api.names(SECRETS, labelSelector=f"owner=helm,name={name}")
    if not found:
        return None
    newest = max(found, key=lambda one: int(one["labels"]["version"]))
    written = newest["labels"].get("modifiedAt") or newest["labels"].get("createdAt")
    since = float(written) if written else None
    seconds = _epoch(at) - since if since else seconds_between(newest.get("creationTimestamp"), at)
    return Release(
        int(newest["labels"]["version"]), str(newest["labels"]["status"]), seconds, newest["name"], newest["uid"]
    )


def _epoch(at: str) -> float:
    return seconds_between("1970-01-01T00:00:00Z", at)
