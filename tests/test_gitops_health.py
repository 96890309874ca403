"""Argo CD's view of a PyTorchJob: the Lua of manifests/gitops/argocd on statuses that were recorded on a cluster.

What `make test-gitops` recorded lies in tests/gitops/recorded; there the same Lua also runs in Argo CD itself.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gitops.lua import KEY, Broken, script, verdict

HOUSE = Path(__file__).parents[1]
GITOPS = HOUSE / "manifests/gitops/argocd"
RECORDED = {
    path.stem: json.loads(path.read_text()) for path in sorted((HOUSE / "tests/gitops/recorded").glob("*.json"))
}
EXPECTED = {
    "created": ("Suspended", "waits for its gate"),
    "suspended": ("Suspended", "waits for its gate"),
    "suspended-again": ("Suspended", "was suspended while it trained"),
    "released": ("Progressing", "waits for its first worker"),
    "running": ("Progressing", "trains, workers: 1"),
    "restarting": ("Progressing", "is restarting because"),
    "succeeded": ("Healthy", "successfully completed"),
    "failed": ("Degraded", "replica(s) failed. caspi status diverges --to helm --namespace "),
}


def manifest(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((GITOPS / name).read_text()) if one]


def changed(name: str, **conditions: str) -> dict[str, Any]:
    """A recorded job with more conditions that are true."""
    job: dict[str, Any] = copy.deepcopy(RECORDED[name])
    for kind, message in conditions.items():
        job.setdefault("status", {}).setdefault("conditions", []).append(
            {"type": kind, "status": "True", "reason": f"PyTorchJob{kind}", "message": message}
        )
    return job


def test_every_state_was_recorded() -> None:
    assert set(RECORDED) == set(EXPECTED)
    for name, job in RECORDED.items():
        assert job["kind"] == "PyTorchJob" and job["metadata"]["uid"], f"{name}: of a real API server"


@pytest.mark.parametrize("name", EXPECTED)
def test_health_of_what_was_recorded(name: str) -> None:
    status, message = verdict(RECORDED[name])
    assert (status, EXPECTED[name][1] in message) == (EXPECTED[name][0], True), message


def test_what_is_final_wins_over_what_is_also_true() -> None:
    """An elastic job has succeeded while a worker that was late makes the operator say Restarting."""
    assert verdict(changed("succeeded", Restarting="is restarting"))[0] == "Healthy"
    assert verdict(changed("running", Failed="it is over"))[0] == "Degraded"
    assert verdict(changed("succeeded", Failed="it is over"))[0] == "Degraded"
    suspended = changed("succeeded")
    suspended["spec"]["runPolicy"]["suspend"] = True
    assert verdict(suspended)[0] == "Healthy"


def test_a_condition_that_no_longer_holds_says_nothing() -> None:
    job = changed("running")
    job["status"]["conditions"].append({"type": "Failed", "status": "False", "message": "of before"})
    assert verdict(job)[0] == "Progressing"


def test_the_queue_is_named() -> None:
    job = changed("suspended")
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    assert verdict(job) == ("Suspended", "waits for its turn in the queue gpus")


@pytest.mark.parametrize("path", [("status",), ("status", "conditions"), ("spec", "runPolicy"), ("metadata", "labels")])
def test_what_is_missing_is_no_error(path: tuple[str, ...]) -> None:
    for job in map(copy.deepcopy, RECORDED.values()):
        inner = job
        for key in path[:-1]:
            inner = inner.get(key, {})
        inner.pop(path[-1], None)
        assert verdict(job)[0] in ("Progressing", "Suspended", "Healthy", "Degraded")


def test_never_healthy_before_it_has_succeeded() -> None:
    for name, job in RECORDED.items():
        assert (verdict(job)[0] == "Healthy") == (name == "succeeded"), name


@pytest.mark.parametrize(
    "fault, wrong",
    [
        ('condition.status == "True"', "condition.status ~= nil"),
        ("if holds.Failed then", "if false then"),
        ('if holds.Succeeded then return verdict("Healthy"', 'if holds.Running then return verdict("Healthy"'),
        ("if policy.suspend == true then", "if holds.Suspended then"),
        ('verdict("Progressing", "trains', 'verdict("Healthy", "trains'),
        ("status.conditions or {}", "status.conditions"),
    ],
)
def test_planted_faults_are_found(fault: str, wrong: str) -> None:
    """Each line that decides is one that some recorded status, or one made of them, decides otherwise without."""
    text = script()
    assert text.count(fault) == 1, fault
    jobs = [*RECORDED.values(), changed("running"), {"metadata": {"name": "a", "namespace": "b"}, "spec": {}}]
    jobs[-2]["status"]["conditions"].append({"type": "Failed", "status": "False", "message": "of before"})

    def all_of(lua: str) -> list[Any]:
        found: list[Any] = []
        for job in jobs:
            try:
                found.append(verdict(job, lua))
            except Broken as error:
                found.append(str(error))
        return found

    assert all_of(text) != all_of(text.replace(fault, wrong))


def test_the_library_of_strings_is_not_there() -> None:
    """As in Argo CD, unless it is told otherwise: a script that uses it ends in an error there, and so it does here."""
    for lua in ('return {status = string.upper("a")}', 'local a = "a" return {status = a:upper()}'):
        with pytest.raises(Broken):
            verdict(RECORDED["running"], lua)


def test_the_project_permits_what_the_chart_makes_and_nothing_else() -> None:
    (project,) = manifest("project.yaml")
    permitted = {one["kind"] for one in project["spec"]["namespaceResourceWhitelist"]}
    templates = [path.read_text() for path in (HOUSE / "charts/caspi-train/templates").glob("*.yaml")]
    made = {kind for text in templates for kind in re.findall(r"^kind: (\w+)$", text, re.MULTILINE)}
    assert permitted == made
    assert project["spec"]["clusterResourceWhitelist"] == []


def test_what_keeps_a_round_from_running_twice() -> None:
    (rounds,) = manifest("rounds.yaml")
    spec, template = rounds["spec"], rounds["spec"]["template"]["spec"]
    assert spec["syncPolicy"] == {"applicationsSync": "create-only", "preserveResourcesOnDeletion": True}
    assert rounds["metadata"]["finalizers"], "without, the Applications go with the ApplicationSet"
    assert spec["goTemplateOptions"] == ["missingkey=error"]
    assert "finalizers" not in spec["template"]["metadata"], "deleting an Application must not delete its job"
    assert template["syncPolicy"]["automated"] == {"prune": False, "selfHeal": False}
    assert {"RespectIgnoreDifferences=true", "ApplyOutOfSyncOnly=true"} <= set(template["syncPolicy"]["syncOptions"])
    assert template["source"]["targetRevision"] == "{{ .git }}"
    (ignored,) = template["ignoreDifferences"]
    assert "/spec/runPolicy/suspend" in ignored["jsonPointers"]


def test_two_lines_are_to_be_changed() -> None:
    lines = [line for path in GITOPS.glob("*.yaml") for line in path.read_text().splitlines() if "# CHANGE" in line]
    assert len(lines) == 2
    used = (GITOPS / "kustomization.yaml").read_text()
    for name in manifest("settings.yaml")[0]["data"]:
        assert f"fieldPath: data.{name}" in used
    places = [
        (path, text.count(": settings.yaml") + text.count("[settings.yaml]"))
        for path in GITOPS.glob("*.yaml")
        if (text := path.read_text())
    ]
    assert sum(count for path, count in places if path.name in ("project.yaml", "rounds.yaml")) == 4


def test_the_health_check_is_under_the_name_that_argo_cd_reads() -> None:
    (health,) = manifest("health.yaml")
    assert list(health["data"]) == [KEY]
    assert health["metadata"]["labels"]["app.kubernetes.io/part-of"] == "argocd", "Argo CD reads no other ConfigMap"
