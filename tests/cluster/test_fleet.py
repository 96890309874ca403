"""`caspi submit`, `status`, `logs` and `cancel` on a real API server and operator: the same twice, killed, changed.

No pod has to run here: the image is one that no registry has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kube import CASPI, HOUSE, Kube, environment, make_claim, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAME = "demo-r1"
IMAGE = "localhost:1/nothing@sha256:" + "0" * 64
"""Refused at once: a name that is nowhere is looked for 20 s, and its pod waits for that."""


@pytest.fixture
def cluster_file(kube: Kube, tmp_path: Path) -> Path:
    make_claim(kube, "rounds")
    return write(tmp_path / "cluster.yaml", kube)


@pytest.fixture
def tidy(kube: Kube) -> Any:
    yield
    run(CASPI, "cancel", NAME, "-n", kube.namespace, check=False)


def write(path: Path, kube: Kube, **more: Any) -> Path:
    pod = {"cpu": 1, "memory": "256MiB", "shm": "64MiB"}
    own = {"namespace": kube.namespace, "images": {"train": IMAGE}, "pod": pod, **more}
    path.write_text(yaml.safe_dump({"nodes": 2, "data_root": "/rounds/data", "kubernetes": own}))
    return path


def submit(cluster: Path, *options: str | Path, file: Path = HOUSE / "rounds/demo-r1.yaml") -> Any:
    return run(CASPI, "submit", file, "--cluster", cluster, *options, check=False)


def values(tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(more))
    return path


def left(kube: Kube) -> list[str]:
    kinds = "pytorchjobs,pods,jobs,services,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,secrets"
    names = kube.kubectl("get", kinds, "-o", "name").split()
    return [name for name in names if not name.endswith(("kube-root-ca.crt", "/default"))]


def uid(kube: Kube) -> str:
    return str(kube.get("pytorchjob", NAME).get("metadata", {}).get("uid", ""))


def test_submitted_adopted_updated_cancelled(kube: Kube, cluster_file: Path, tidy: None, tmp_path: Path) -> None:
    first = submit(cluster_file, "--json")
    assert (first.returncode, json.loads(first.stdout)["outcome"]) == (0, "submitted"), first.stderr
    before = uid(kube)
    again = submit(cluster_file, "--json")
    assert (again.returncode, json.loads(again.stdout)["outcome"]) == (0, "there already")
    assert kube.kubectl("get", "secrets", "-l", "owner=helm", "-o", "name").count("\n") == 1, "no second revision"
    more = submit(cluster_file, "--json", "--values", values(tmp_path, grace=60))
    assert json.loads(more.stdout)["outcome"] == "updated", more.stderr
    assert uid(kube) == before

    changed = tmp_path / "demo-r1.yaml"
    changed.write_text((HOUSE / "rounds/demo-r1.yaml").read_text().replace("seed: 42", "seed: 43"))
    refused = submit(cluster_file, file=changed)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "give the changed round a new name" in refused.stderr
    assert uid(kube) == before

    said = run(CASPI, "status", NAME, "--to", "helm", "--cluster", cluster_file).stdout
    assert said.startswith("demo-r1   Preparing\n"), said
    everything = run(CASPI, "status", "--to", "helm", "-n", kube.namespace).stdout
    assert everything.startswith("demo-r1   Preparing"), everything
    unknown = run(CASPI, "status", "nothing", "--to", "helm", "--cluster", cluster_file, check=False)
    assert (unknown.returncode, "rounds are: demo-r1" in unknown.stderr) == (2, True)

    gone = run(CASPI, "cancel", NAME, "--cluster", cluster_file)
    assert "demo-r1 is cancelled" in gone.stdout
    assert left(kube) == []
    assert kube.get("pvc", "rounds"), "the claim stays"
    assert "nothing to cancel" in run(CASPI, "cancel", NAME, "--cluster", cluster_file).stdout


@pytest.mark.parametrize("after", [1.0, 1.5, 2.0, 2.8])
def test_a_submit_that_is_killed_and_repeated(kube: Kube, cluster_file: Path, tidy: None, after: float) -> None:
    """With all of its children, at some moment; wherever that was, the second one ends as if there had been none."""
    command = [str(CASPI), "submit", str(HOUSE / "rounds/demo-r1.yaml"), "--cluster", str(cluster_file)]
    running = subprocess.Popen(command, env=dict(environment()), start_new_session=True, stderr=subprocess.DEVNULL)
    time.sleep(after)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = submit(cluster_file)
    assert done.returncode == 0, done.stderr
    job = kube.get("pytorchjob", NAME)
    assert job["spec"]["runPolicy"]["suspend"]
    assert len(kube.items("jobs", "app.kubernetes.io/component=gate")) == 1
    states = [one["metadata"]["labels"]["status"] for one in kube.items("secrets", "owner=helm")]
    assert states.count("deployed") == 1
    assert not [state for state in states if state.startswith("pending")]


def test_a_pending_release_is_taken_over(kube: Kube, cluster_file: Path, tidy: None) -> None:
    """As a client leaves it that was killed in the middle of an install: no job, and a lock that nobody opens."""
    assert submit(cluster_file).returncode == 0
    secret = kube.items("secrets", "owner=helm")[0]["metadata"]["name"]
    kube.kubectl("label", "secret", secret, "status=pending-install", "modifiedAt=1", "--overwrite")
    kube.kubectl("delete", "pytorchjob", NAME)
    done = submit(cluster_file)
    assert (done.returncode, "a submit was cut off" in done.stderr) == (0, True), done.stderr
    assert uid(kube)


def test_what_was_deleted_by_hand_comes_back(kube: Kube, cluster_file: Path, tidy: None) -> None:
    assert submit(cluster_file).returncode == 0
    kube.kubectl("delete", "pytorchjob", NAME)
    said = run(CASPI, "status", NAME, "--to", "helm", "--cluster", cluster_file).stdout
    assert "no PyTorchJob" in said
    done = submit(cluster_file, "--json")
    assert json.loads(done.stdout)["outcome"] == "resumed", done.stderr
    assert uid(kube)
    kube.kubectl("delete", "pytorchjob", NAME)
    kube.kubectl("delete", "secrets", "-l", "owner=helm")
    run(CASPI, "cancel", NAME, "--cluster", cluster_file)
    assert left(kube) == [], "also without Helm's own record"


def test_a_failed_job_is_started_again(kube: Kube, cluster_file: Path, tidy: None, tmp_path: Path) -> None:
    """The operator never starts it again: it is a new job, of the same round."""
    no_preparation = values(tmp_path, preparation={"enabled": False})
    assert submit(cluster_file, "--values", no_preparation).returncode == 0
    before = uid(kube)
    failed = {"type": "Failed", "status": "True", "reason": "PyTorchJobFailed", "message": "as planted"}
    moment = {"lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch = json.dumps({"status": {"conditions": [failed | moment]}})
    kube.kubectl("patch", "pytorchjob", NAME, "--subresource=status", "--type=merge", "-p", patch)
    said = run(CASPI, "status", NAME, "--to", "helm", "--cluster", cluster_file).stdout
    assert "PyTorchJob Failed" in said
    done = submit(cluster_file, "--json", "--values", no_preparation)
    assert json.loads(done.stdout)["outcome"] == "resumed", done.stderr
    assert "it is started again, from its last checkpoint" in done.stderr
    assert uid(kube) not in ("", before)


def test_an_image_that_nobody_has_is_named(kube: Kube, cluster_file: Path, tidy: None, tmp_path: Path) -> None:
    assert submit(cluster_file, "--values", values(tmp_path, preparation={"enabled": False})).returncode == 0

    def named() -> str | None:
        said = str(run(CASPI, "status", NAME, "--to", "helm", "--cluster", cluster_file).stdout)
        return said if "can't be pulled" in said else None

    assert IMAGE in until("the image is named", named, 120, kube)
    logs = run(CASPI, "logs", NAME, "--cluster", cluster_file)
    assert "copies lie in /rounds/demo-r1-" in logs.stderr


def test_a_user_without_rights_gets_one_line(kube: Kube, cluster_file: Path, tmp_path: Path) -> None:
    kube.kubectl("create", "serviceaccount", "nobody")
    token = kube.kubectl("create", "token", "nobody").strip()
    config = yaml.safe_load(Path(environment()["KUBECONFIG"]).read_text())
    config["users"] = [{**config["users"][0], "user": {"token": token}}]
    nobody = tmp_path / "nobody.yaml"
    nobody.write_text(yaml.safe_dump(config))
    for command in (("status", NAME, "--to", "helm"), ("logs", NAME), ("cancel", NAME)):
        done = subprocess.run(
            [CASPI, *command, "--cluster", cluster_file],
            env={**environment(), "KUBECONFIG": str(nobody)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "may not list pytorchjobs in namespace" in done.stderr
    kube.kubectl("delete", "serviceaccount", "nobody")
