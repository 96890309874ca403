"""Runs the health check of manifests/gitops/argocd as Argo CD does: Lua 5.1 with its base and tables, nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml

MANIFEST = Path(__file__).parents[2] / "manifests/gitops/argocd/health.yaml"
KEY = "resource.customizations.health.kubeflow.org_PyTorchJob"
CODES = {"Healthy", "Progressing", "Suspended", "Degraded", "Missing", "Unknown"}
ABSENT = ("string", "math", "io", "debug", "coroutine", "python")


class Broken(Exception):
    """The script failed, or gave what Argo CD does not understand."""


def script() -> str:
    (config,) = yaml.safe_load_all(MANIFEST.read_text())
    return str(config["data"][KEY])


def verdict(job: dict[str, Any], lua: str | None = None) -> tuple[str, str]:
    """Health and message of an object. Raises Broken."""
    lua51 = importlib.import_module("lupa.lua51")  # of the packages in lupa, the one with Argo CD's version of Lua
    runtime = lua51.LuaRuntime(unpack_returned_tuples=True)
    strings = runtime.eval("getmetatable('')")
    strings["__index"] = None  # 'a':upper()
    for name in ABSENT:
        runtime.globals()[name] = None
    runtime.globals().obj = runtime.table_from(job, recursive=True)
    try:
        found = runtime.execute(lua if lua is not None else script())
    except lua51.LuaError as error:
        raise Broken(str(error)) from None
    answer = dict(found) if found is not None else {}
    if answer.get("status") not in CODES:
        raise Broken(f"no health: {answer}")
    return answer["status"], answer.get("message", "")
