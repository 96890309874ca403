"""Rounds by a real Argo CD: merged, trained once, never changed, whatever happens to the lock or to Argo CD.

Three locks are merged at once; the tests build on each other, in the order of the file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.jobs import Setting
from tests.cluster.kube import CASPI, last_step, metric_steps, processes_of, run
from tests.gitops import argo
from tests.gitops.lua import verdict
from tests.gitops.recording import record
from tests.gitops.world import CHANGES, DIVERGES, DOUBTFUL, MERGED, World, changes, make_world, suspended, uid

pytestmark = [pytest.mark.gitops, pytest.mark.timeout(600)]
Row = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def world(setting: Setting, repository: argo.Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from make_world(setting, repository, tmp_path_factory.mktemp("world"))


def test_a_merged_lock_becomes_a_job(world: World, measured: Row) -> None:
    argo.look_at_git()
    for name in CHANGES:
        app = argo.application(name)
        assert app, f"no Application {name}\n{argo.explain(name, world.kube)}"
        lock = yaml.safe_load((world.repository.folder / f"rounds/{name}.lock.yaml").read_text())
        source = app["spec"]["source"]
        assert source["targetRevision"] == lock["git"]
        assert yaml.safe_load(source["helm"]["values"]) == lock["values"]
        assert app["metadata"]["annotations"]["caspi.dev/spec-digest"] == lock["digest"]
        assert not app["metadata"].get("finalizers")
    world.waits(MERGED, lambda: world.job(MERGED), 60)
    measured.append(("from the push of a lock to its job", f"{time.monotonic() - world.pushed:.0f} s", "asked to look"))
    assert suspended(world.jobs.of(MERGED)[0]), "no GPU before the gate"
    folder = world.round_dir(MERGED)
    world.waits(MERGED, lambda: last_step(folder) >= 1)
    measured.append(("to its first step", f"{time.monotonic() - world.pushed:.0f} s", "three rounds at once"))
    assert argo.sync_status(MERGED) == "Synced", argo.explain(MERGED, world.kube)
    assert argo.health(MERGED) == "Progressing"


def test_a_running_job_is_left_alone(world: World, measured: Row) -> None:
    """Refreshed, synced, synced with somebody's own options, restarted, its Application deleted."""
    job, there = world.job(MERGED), world.pods(MERGED)
    assert not suspended(job)

    def same(after: str) -> None:
        now = world.job(MERGED)
        assert (uid(now), suspended(now), now["metadata"]["generation"]) == (
            uid(job),
            False,
            job["metadata"]["generation"],
        ), after
        assert world.pods(MERGED) == there, after

    argo.refresh(MERGED)
    assert argo.sync(MERGED)["phase"] == "Succeeded"
    same("a refresh and a sync")
    # with the options of the Application lost, as by `argocd app sync --server-side` and the like
    for options in ([], ["ServerSideApply=true"], ["Replace=true"]):
        state = argo.sync(MERGED, options, retry={"limit": 0})
        assert "does not suspend it again" in json.dumps(state), state
        same(f"a sync with {options}")
    begun = time.monotonic()
    argo.restart()
    measured.append(("Argo CD restarted", f"{time.monotonic() - begun:.0f} s", "until it is ready"))
    argo.refresh(MERGED)
    assert argo.sync(MERGED)["phase"] == "Succeeded"
    same("a restart")
    before = uid(argo.application(MERGED))
    argo.ARGO.kubectl("delete", "application", MERGED)
    argo.look_at_git()
    world.waits(MERGED, lambda: uid(argo.application(MERGED)) not in ("", before), 60)
    world.waits(MERGED, lambda: argo.sync_status(MERGED) == "Synced", 60)
    same("its Application deleted and made again")
    assert last_step(world.round_dir(MERGED)) > 0 and world.kube.condition("pytorchjob", MERGED) == "Running"


def test_an_edited_lock_changes_nothing(world: World) -> None:
    """CI refuses it; and if somebody merges it all the same, the cluster keeps the old one."""
    path = world.repository.folder / f"rounds/{MERGED}.lock.yaml"
    spec, job, there = argo.application(MERGED)["spec"], world.job(MERGED), world.pods(MERGED)
    lock = path.read_text()
    assert world.repository.caspi("verify-locks", "--base", "origin/main").returncode == 0
    assert lock.count("epochs: 8") == 1
    path.write_text(lock.replace("epochs: 8", "epochs: 9"))
    refused = world.repository.caspi("verify-locks", "--base", "origin/main", check=False)
    assert (refused.returncode, f"{MERGED}.lock.yaml" in refused.stderr) == (2, True), refused.stderr
    world.repository.merge("An edited lock, past CI")
    argo.look_at_git()
    argo.refresh(MERGED)
    assert argo.application(MERGED)["spec"] == spec
    assert uid(world.job(MERGED)) == uid(job) and world.pods(MERGED) == there
    path.write_text(lock)
    world.repository.merge("The lock as it was")


def test_a_round_that_diverges_is_degraded(world: World) -> None:
    world.waits(DIVERGES, lambda: argo.health(DIVERGES) == "Degraded")
    status, message = argo.resource_health(argo.application(DIVERGES), "PyTorchJob")
    assert status == "Degraded"
    assert f"caspi status {DIVERGES} --to helm --namespace {world.kube.namespace}" in message
    said = argo.caspi_status(DIVERGES, world.kube)
    assert "WER" in said and "0.01" in said, f"what the message names says why: {said}"
    assert argo.sync(DIVERGES)["phase"] == "Succeeded"
    assert world.kube.condition("pytorchjob", DIVERGES) == "Failed", "a sync does not start it again"


def test_submit_leaves_the_round_to_argo_cd(world: World) -> None:
    before = world.job(DIVERGES)
    file, cluster = (world.repository.folder / name for name in (f"rounds/{DIVERGES}.yaml", "clusters/test.yaml"))
    done = run(CASPI, "submit", file, "--cluster", cluster, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"kept by Argo CD's application {DIVERGES}" in done.stderr
    assert world.job(DIVERGES)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_cancelled_round_stays_cancelled_until_somebody_syncs(world: World) -> None:
    before = uid(world.job(DIVERGES))
    run(CASPI, "cancel", DIVERGES, "--namespace", world.kube.namespace)
    assert not world.job(DIVERGES)
    argo.refresh(DIVERGES)
    world.waits(DIVERGES, lambda: argo.sync_status(DIVERGES) == "OutOfSync", 60)
    time.sleep(3)  # for a sync that must not follow
    assert not world.job(DIVERGES)
    assert argo.sync(DIVERGES)["phase"] == "Succeeded"
    assert uid(world.job(DIVERGES)) not in ("", before)
    world.waits(DIVERGES, lambda: not suspended(world.job(DIVERGES)))  # its gate passes anew


def test_without_the_policy_a_bare_sync_suspends(world: World) -> None:
    """The fault that manifests/gitops/argocd/suspend.yaml is there for, planted."""
    argo.ARGO.kubectl("delete", "validatingadmissionpolicybinding", "caspi-no-second-suspend")
    try:

        def synced_and_suspended() -> bool:
            """The API server takes a moment to forget a policy."""
            argo.sync(DIVERGES, [])
            return suspended(world.job(DIVERGES))

        world.waits(DIVERGES, synced_and_suspended, 30)
    finally:
        run("kubectl", "apply", "--server-side", "--field-manager=caspi", "-f", argo.MANIFESTS / "suspend.yaml")


def test_a_caution_is_degraded_until_it_is_signed(world: World) -> None:
    """By the commands of docs/gitops.md."""
    world.waits(DOUBTFUL, lambda: argo.health(DOUBTFUL) == "Degraded")
    (gate,) = world.kube.items("jobs", f"caspi.dev/round={DOUBTFUL}")
    name = gate["metadata"]["name"]
    status, message = argo.resource_health(argo.application(DOUBTFUL), "Job", name)
    assert (status, "exit code 3" in message) == ("Degraded", True), message
    job = world.job(DOUBTFUL)
    assert suspended(job) and not world.kube.workers(DOUBTFUL)
    said = argo.caspi_status(DOUBTFUL, world.kube)
    named = re.search(f"sign audit ([0-9a-f]+) in Argo CD's application {DOUBTFUL}: docs/gitops.md", said)
    assert named, said
    audit = named[1]

    world.kube.kubectl("delete", "job", name)
    signed = {"by": "Dana Levi", "reason": "it is a test", "audit": audit}
    own = argo.application(DOUBTFUL)["spec"]["source"]["helm"].get("parameters", [])
    parameters = [
        *own,
        *(
            {"name": f"preparation.approval.{key}", "value": value, "forceString": True}
            for key, value in signed.items()
        ),
    ]
    patch = {"spec": {"source": {"helm": {"parameters": parameters}}}}
    argo.ARGO.kubectl("patch", "application", DOUBTFUL, "--type=merge", "-p", json.dumps(patch))
    folder = world.round_dir(DOUBTFUL)
    world.waits(DOUBTFUL, lambda: last_step(folder) >= 1, 180)
    assert uid(world.job(DOUBTFUL)) == uid(job)
    approval = json.loads((folder / "audit/approval.json").read_text())
    assert (approval["by"], approval["reason"]) == ("Dana Levi", "it is a test")
    assert argo.health(DOUBTFUL) == "Progressing"
    argo.look_at_git()
    kept = argo.application(DOUBTFUL)["spec"]["source"]["helm"]["parameters"]
    assert kept == parameters, "the ApplicationSet leaves the signature where it is"


def test_a_person_may_suspend_and_a_worker_may_die(world: World) -> None:
    """Argo CD says so, and a sync leaves a job suspended that a person has suspended."""

    def suspend(value: bool) -> None:
        patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
        world.kube.kubectl("patch", "pytorchjob", DOUBTFUL, "--type=merge", "-p", patch)

    def says(status: str, words: str) -> bool:
        found = argo.resource_health(argo.application(DOUBTFUL), "PyTorchJob")
        return found[0] == status and words in found[1]

    suspend(True)
    world.waits(DOUBTFUL, lambda: says("Suspended", "was suspended while it trained"), 60)
    assert argo.sync(DOUBTFUL)["phase"] == "Succeeded"
    assert suspended(world.job(DOUBTFUL))
    suspend(False)
    found = world.waits(DOUBTFUL, lambda: processes_of(f"{DOUBTFUL}-worker-0", "caspi worker"), 90)
    os.kill(found[0], signal.SIGKILL)
    world.waits(DOUBTFUL, lambda: says("Progressing", "is restarting"), 60)
    world.waits(DOUBTFUL, lambda: argo.health(DOUBTFUL) == "Healthy", 180)


def test_a_trained_round_is_healthy(world: World, measured: Row) -> None:
    world.waits(MERGED, lambda: argo.health(MERGED) == "Healthy")
    measured.append(("to Healthy", f"{time.monotonic() - world.pushed:.0f} s", "with all the tests before this one"))
    folder = world.round_dir(MERGED)
    assert json.loads((folder / "train/record.json").read_text())["status"] == "succeeded"
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(metric_steps(folder)), "every step once"


def test_a_trained_round_is_not_trained_again(world: World) -> None:
    job, folder = world.job(MERGED), world.round_dir(MERGED)
    record, line_count = (folder / "train/record.json").read_bytes(), (folder / "train/metrics.jsonl").read_bytes()
    argo.restart()
    argo.refresh(MERGED)
    assert argo.sync(MERGED)["phase"] == "Succeeded"
    argo.sync(MERGED, [], retry={"limit": 0})
    argo.refresh(MERGED)
    now = world.job(MERGED)
    assert (uid(now), now["metadata"]["generation"]) == (uid(job), job["metadata"]["generation"])
    assert (argo.health(MERGED), argo.sync_status(MERGED)) == ("Healthy", "Synced")
    assert (folder / "train/record.json").read_bytes() == record
    assert (folder / "train/metrics.jsonl").read_bytes() == line_count
    gates = world.kube.items("jobs", f"caspi.dev/round={MERGED}")
    assert [gate["status"].get("succeeded") for gate in gates] == [1]


def test_a_deleted_lock_deletes_nothing(world: World) -> None:
    job, app, folder = world.job(MERGED), argo.application(MERGED), world.round_dir(MERGED)
    before = sorted(path.name for path in folder.rglob("*"))
    (world.repository.folder / f"rounds/{MERGED}.lock.yaml").unlink()
    assert world.repository.caspi("verify-locks", "--base", "origin/main").returncode == 0, "deleting is allowed"
    world.repository.merge("A round less")
    argo.look_at_git()
    argo.look_at_git()
    assert uid(argo.application(MERGED)) == uid(app)
    assert uid(world.job(MERGED)) == uid(job)
    argo.ARGO.kubectl("delete", "applicationset", "caspi-rounds")
    time.sleep(3)  # for a deletion that must not follow
    assert uid(argo.application(MERGED)) == uid(app) and uid(world.job(MERGED)) == uid(job)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_job_was_made_once(world: World) -> None:
    for name in (MERGED, DOUBTFUL):
        assert len({uid(one) for one in world.jobs.of(name)}) == 1, name
    states = changes(suspended(one) for one in world.jobs.of(MERGED))
    assert states == [True, False], "suspended, then let go, and that was it"


def test_health_went_as_the_job_did(world: World) -> None:
    """What Argo CD said of each job, in its order, is what the Lua says here of the versions that the job had."""
    expected = {
        MERGED: ["Suspended", "Progressing", "Healthy"],
        DOUBTFUL: ["Suspended", "Progressing", "Suspended", "Progressing", "Healthy"],
        DIVERGES: ["Suspended", "Progressing", "Degraded", "Suspended", "Progressing"],  # cancelled, and made again
    }
    for name, order in expected.items():
        here = [verdict(one) for one in world.jobs.of(name)]
        there = [argo.resource_health(app, "PyTorchJob") for app in world.applications.of(name)]
        there = [one for one in there if one[0] not in ("", "Missing")]
        assert set(there) <= set(here), name
        for seen in (here, there):
            assert changes(status for status, _ in seen)[: len(order)] == order, name
    whole = [app.get("status", {}).get("health", {}).get("status", "") for app in world.applications.of(MERGED)]
    assert [one for one in changes(whole) if one not in ("", "Missing")][-2:] == ["Progressing", "Healthy"]
    assert "Degraded" not in whole


def test_the_lua_says_the_same_in_argo_cd(world: World, tmp_path: Path) -> None:
    """By the interpreter in its own program. RECORD=1 keeps a job of each state for tests/test_gitops_health.py."""
    config = tmp_path / "argocd-cm.yaml"
    config.write_text((argo.MANIFESTS / "health.yaml").read_text())
    one_each: dict[tuple[str, str], dict[str, Any]] = {}
    for job in world.jobs.seen():
        one_each.setdefault(verdict(job), job)
    assert {status for status, _ in one_each} == {"Suspended", "Progressing", "Healthy", "Degraded"}
    for (status, message), job in one_each.items():
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        said = argo.argocd(
            "admin", "settings", "resource-overrides", "health", tmp_path / "job.yaml", "--argocd-cm-path", config
        )
        assert f"STATUS: {status}" in said and f"MESSAGE: {message}" in said, said
    if os.environ.get("RECORD"):
        record(world.jobs.seen(), argo.HERE / "recorded")
