"""One round on three workers over two nodes, disturbed in every way: each time the same loss curve to its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import MEASURED
from tests.cluster.jobs import NAME, Job, Setting, fill, submit
from tests.cluster.kube import HERE, Kube, metric_steps, processes_of, remove_folder, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SAME = 1e-5
"""How far two losses may be apart, relative: sums in another order."""
Row = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def undisturbed(setting: Setting) -> Job:
    """The whole way: prepared on the cluster, gate, start, three workers, the end."""
    job = submit(setting, setting.cluster_file("first"), fill(setting, "first"))
    job.reaches(1, 600)  # the images may have to be pulled first
    first_step = time.monotonic() - job.submitted
    parts = timeline(setting.kube)
    assert setting.kube.finished(NAME) == "Succeeded", setting.kube.explain(NAME)
    MEASURED.append(("helm install to first step", f"{first_step:.1f} s", parts))
    job.cancel()
    return job


def test_the_round_is_trained(undisturbed: Job) -> None:
    curve = metric_steps(undisturbed.round_dir)
    assert sorted(curve) == list(range(1, max(curve) + 1)), "no step is missing"
    record = yaml.safe_load((undisturbed.round_dir / "train/record.json").read_text())
    assert record["status"] == "succeeded" and record["results"]["steps"] == max(curve)
    assert (undisturbed.round_dir / "model/config.json").is_file()
    assert (undisturbed.round_dir / "model").stat().st_uid == 10001


def kill(worker: int) -> Callable[[Job], None]:
    def act(job: Job) -> None:
        pids = processes_of(f"{NAME}-worker-{worker}", "caspi worker")
        assert pids, "the agent of the worker"
        os.kill(pids[0], signal.SIGKILL)

    return act


def drain(job: Job) -> None:
    """The node of a follower, as before maintenance: its pods are asked to go."""
    node = job.setting.kube.node_of(f"{NAME}-worker-1")
    run("kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")


def node_dies(job: Job) -> None:
    """node-1 is gone from one moment to the next, with whatever ran there."""
    on_it = [pod["metadata"]["name"] for pod in job.setting.kube.workers(NAME) if pod["spec"]["nodeName"] == "node-1"]
    assert on_it and f"{NAME}-worker-0" not in on_it, on_it
    run(HERE / "node", "stop", "1")


@pytest.mark.parametrize(
    ("fault", "act"),
    [
        ("a worker is killed", kill(2)),
        ("the rendezvous host is killed", kill(0)),
        ("a node is drained", drain),
        ("a node dies", node_dies),
    ],
    ids=["worker", "host", "drain", "node"],
)
def test_disturbed_it_ends_the_same(
    fault: str,
    act: Callable[[Job], None],
    setting: Setting,
    undisturbed: Job,
    request: Any,
    measured: Row,
) -> None:
    claim = request.node.callspec.id
    job = submit(setting, setting.cluster_file(claim), fill(setting, claim, undisturbed.round_dir))
    try:
        host_on_node_0(job)
        job.reaches(12)
        until("three workers train", lambda: world_size(job) == 3, 60, setting.kube)
        begun = time.monotonic()
        act(job)
        seconds = job.seconds_to_next_step(begun)
        run("kubectl", "uncordon", "node-1")
        assert setting.kube.finished(NAME, 300) == "Succeeded", setting.kube.explain(NAME)
    finally:
        run("kubectl", "uncordon", "node-0", "node-1")
        if act is node_dies:
            run(HERE / "node", "start", "1")
    measured.append((f"{fault}: to the next step", f"{seconds:.1f} s", f"worlds: {worlds(job)}"))
    found, wanted = metric_steps(job.round_dir), metric_steps(undisturbed.round_dir)
    assert found.keys() == wanted.keys()
    apart = max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted)
    assert apart < SAME, f"{fault}: losses are up to {apart:.1e} apart"
    job.cancel()
    remove_folder(job.folder)


def host_on_node_0(job: Job) -> None:
    """Have worker-0, where the others meet, on the node that never dies here; before training has begun."""
    kube = job.setting.kube
    first = f"{NAME}-worker-0"
    if until(f"{first} is placed", lambda: kube.node_of(first), 60, kube) == "node-0":
        return
    run("kubectl", "cordon", "node-1")
    kube.kubectl("delete", "pod", first, "--grace-period=1")
    until(f"{first} is on node-0", lambda: kube.node_of(first) == "node-0", 90, kube)
    run("kubectl", "uncordon", "node-1")


def worlds(job: Job) -> str:
    """World sizes in the order in which training saw them: 3 2 3."""
    log = (job.round_dir / "train/logs" / f"{NAME}-worker-0.log").read_text(errors="replace")
    sizes = [line.split()[0] for line in log.splitlines() if "training processes on" in line]
    return " ".join(sizes)


def world_size(job: Job) -> int:
    try:
        return int((worlds(job) or "0").split()[-1])
    except FileNotFoundError:
        return 0


def timeline(kube: Kube) -> str:
    """Where the time from install to the first step went, from what Kubernetes noted (whole seconds)."""

    def at(text: str) -> float:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    made = at(kube.get("pytorchjob", NAME)["metadata"]["creationTimestamp"])
    pod = kube.get("pod", f"{NAME}-worker-0")
    created = at(pod["metadata"]["creationTimestamp"])
    conditions = {one["type"]: at(one["lastTransitionTime"]) for one in pod["status"]["conditions"]}
    started = at(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
    fetched = at(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["finishedAt"])
    parts = {
        "prepare": created - made,
        "schedule": conditions["PodScheduled"] - created,
        "pull and fetch": fetched - conditions["PodScheduled"],
        "start": started - fetched,
    }
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
