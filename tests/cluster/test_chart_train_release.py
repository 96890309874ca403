"""A release of caspi-train on a real API server with the real operator: adopt, refuse, keep, uninstall.

Its pods never start (their claim is bound to nothing): what Helm and the templates do is seen without them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.rendering import TRAIN, merged, value_sets
from tests.cluster.kube import Kube, environment, run, until

pytestmark = pytest.mark.cluster

MINIMAL = yaml.safe_load(value_sets(TRAIN)[0].read_text("utf-8"))
ALL = "pytorchjobs,jobs,pods,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
CLAIM = {"claim": "made-claim", "create": {"size": "1Gi", "accessMode": "ReadWriteOnce"}}
APPROVAL = {"by": "Dana", "reason": "fine", "audit": "0123456789ab"}


def values_of(name: str, **changes: Any) -> dict[str, Any]:
    own = {"round": {"name": name, "file": f"round: {name}"}, "storage": CLAIM | {"claim": f"{name}-claim"}}
    return merged(merged(MINIMAL, own), changes)


def upgrade(kube: Kube, values: dict[str, Any], release: str = "", check: bool = True) -> Any:
    name = release or values["round"]["name"]
    text = yaml.safe_dump(values)
    return kube.helm("upgrade", "--install", name, TRAIN, "--values", "-", stdin=text, check=check)


def refused(kube: Kube, values: dict[str, Any]) -> list[str]:
    """The lines for people."""
    done = upgrade(kube, values, check=False)
    assert done.returncode == 1
    return [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]


def job(kube: Kube, name: str) -> dict[str, Any]:
    return kube.get("pytorchjob", name)


def suspended(kube: Kube, name: str) -> bool | None:
    return job(kube, name)["spec"]["runPolicy"].get("suspend")


def names(kube: Kube, kinds: str, name: str) -> set[str]:
    made = kube.items(kinds, f"caspi.dev/round={name}")
    return {f"{one['kind']}/{one['metadata']['name']}" for one in made}


def gates(kube: Kube, name: str) -> set[str]:
    return {one for one in names(kube, "jobs", name) if "-gate-" in one}


def test_the_same_round_is_adopted(kube: Kube) -> None:
    values = values_of("adopted")
    said = upgrade(kube, values).stdout
    assert "helm uninstall adopted --namespace" in said
    first = job(kube, "adopted")
    jobs = names(kube, "jobs", "adopted")
    upgrade(kube, values)
    again = job(kube, "adopted")
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert again["metadata"]["generation"] == first["metadata"]["generation"]
    assert names(kube, "jobs", "adopted") == jobs


def test_a_changed_round_is_refused(kube: Kube) -> None:
    """By the job, and when that was deleted, by the ConfigMap. Nothing is touched."""
    values = values_of("changed")
    upgrade(kube, values)
    old = MINIMAL["round"]["digest"]
    other = merged(values, {"round": {"digest": "f" * 64}})
    line = (
        f"round.digest: changed in namespace {kube.namespace} is another round ({old[:8]}, not ffffffff); "
        "a changed round needs a new name"
    )
    assert refused(kube, other) == [line]
    assert job(kube, "changed")["metadata"]["annotations"]["caspi.dev/spec-digest"] == old
    kube.kubectl("delete", "pytorchjob", "changed")
    assert refused(kube, other) == [line]
    upgrade(kube, values)
    assert job(kube, "changed")


def test_an_upgrade_keeps_suspend_as_it_is(kube: Kube) -> None:
    values = values_of("kept", workers={"count": 2}, storage={"create": {"accessMode": "ReadWriteMany"}})
    upgrade(kube, values)
    assert suspended(kube, "kept") is True
    for live in (False, True, False):
        kube.kubectl("patch", "pytorchjob", "kept", "--type=merge", "-p", json.dumps(policy(live)))
        kube.kubectl("label", "pytorchjob", "kept", "kueue.x-k8s.io/queue-name=asr", "--overwrite")
        memory = f"{17 + live}Gi"
        values = merged(values, {"workers": {"resources": {"memory": memory}}})
        upgrade(kube, values)
        now = job(kube, "kept")
        assert now["spec"]["runPolicy"]["suspend"] is live
        assert now["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "asr"
        container = now["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["memory"] == memory


def test_preparation_switched_on_does_not_stop_a_running_job(kube: Kube) -> None:
    values = values_of("running", preparation={"enabled": False})
    upgrade(kube, values)
    upgrade(kube, merged(values, {"preparation": {"enabled": True}}))
    assert gates(kube, "running")
    assert not suspended(kube, "running")


def test_a_job_that_was_deleted_after_its_gate_passed_starts_at_once(kube: Kube) -> None:
    """Nobody would let it go otherwise: its gate's Job is done, and the same Job is not run twice."""
    values = values_of("passed", queue="asr")
    upgrade(kube, values)
    assert "kueue.x-k8s.io/queue-name" not in job(kube, "passed")["metadata"]["labels"]
    (gate,) = (name.removeprefix("Job/") for name in gates(kube, "passed"))
    until("its pod", lambda: kube.items("pods", "caspi.dev/round=passed"), 60, kube)
    passed = [{"type": one, "status": "True"} for one in ("SuccessCriteriaMet", "Complete")]
    at = kube.get("job", gate)["status"]["startTime"]
    status = {"conditions": passed, "succeeded": 1, "active": None, "ready": None, "terminating": 0}
    patch = json.dumps({"status": status | {"startTime": at, "completionTime": at}})
    kube.kubectl("patch", "job", gate, "--subresource=status", "--type=merge", "-p", patch)
    kube.kubectl("delete", "pytorchjob", "passed")
    upgrade(kube, values)
    assert not suspended(kube, "passed")
    assert job(kube, "passed")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "asr"


def policy(suspend: bool) -> dict[str, Any]:
    return {"spec": {"runPolicy": {"suspend": suspend}}}


def test_prepared_elsewhere_starts_at_once(kube: Kube) -> None:
    upgrade(kube, values_of("at-once", preparation={"enabled": False}))
    assert not suspended(kube, "at-once")
    assert not names(kube, "jobs", "at-once")
    until("a pod of it", lambda: kube.workers("at-once"), 60, kube)


def test_an_approval_makes_a_new_gate_job(kube: Kube) -> None:
    values = values_of("approved", preparation={"shards": 3})
    upgrade(kube, values)
    before, uid = gates(kube, "approved"), job(kube, "approved")["metadata"]["uid"]
    assistants = names(kube, "jobs", "approved") - before
    upgrade(kube, merged(values, {"preparation": {"approval": APPROVAL}}))
    until("the old one is gone", lambda: not (gates(kube, "approved") & before), 60, kube)
    assert len(gates(kube, "approved")) == 1
    assert names(kube, "jobs", "approved") - gates(kube, "approved") == assistants
    assert job(kube, "approved")["metadata"]["uid"] == uid


def test_a_failed_preparation_is_named(kube: Kube) -> None:
    """The same again would change nothing, so it is refused; other values go through."""
    values = values_of("unprepared", preparation={"deadline": 1})
    upgrade(kube, values)
    (gate,) = (name.removeprefix("Job/") for name in gates(kube, "unprepared"))
    until("it has failed", lambda: kube.condition("job", gate) == "Failed", 60, kube)
    assert refused(kube, values) == [
        f"round.name: Job {gate} has failed, and an upgrade with the same values can't start it again; mend what its "
        "log says, helm uninstall unprepared, then install: what is prepared stays"
    ]
    upgrade(kube, merged(values, {"preparation": {"approval": APPROVAL}}))


def test_a_failed_job_is_named(kube: Kube) -> None:
    values = values_of("failed", preparation={"enabled": False})
    upgrade(kube, values)
    at = "2026-01-01T00:00:00Z"
    failure = {"type": "Failed", "status": "True", "reason": "Test", "message": "by this test"}
    status = {"status": {"conditions": [failure | {"lastTransitionTime": at, "lastUpdateTime": at}]}}
    kube.kubectl("patch", "pytorchjob", "failed", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    assert refused(kube, values) == [
        "round.name: PyTorchJob failed has failed, and an upgrade can't start it again; helm uninstall failed, then "
        "install: it resumes from its last checkpoint"
    ]


def test_uninstall_leaves_the_claim_only(kube: Kube) -> None:
    values = values_of("gone", disruption={"enabled": True}, preparation={"shards": 2})
    upgrade(kube, values)
    until("its pods", lambda: names(kube, "pods", "gone"), 60, kube)
    assert len(names(kube, ALL, "gone")) >= 11
    kube.helm("uninstall", "gone")
    until("all of it is gone", lambda: not names(kube, ALL, "gone"), 90, kube)
    assert names(kube, "persistentvolumeclaims", "gone") == {"PersistentVolumeClaim/gone-claim"}
    upgrade(kube, values)  # the same release takes its claim back
    assert refused(kube, values_of("newcomer", storage={"claim": "gone-claim"})) == [
        "storage.create: the claim gone-claim is there already; leave out storage.create to use it"
    ]


def test_the_gate_may_start_its_job_and_nothing_else(kube: Kube) -> None:
    upgrade(kube, values_of("gated"))
    for account, verb, what, expected in (
        ("gated-gate", "patch", "pytorchjobs.kubeflow.org/gated", "yes"),
        ("gated-gate", "get", "pytorchjobs.kubeflow.org/gated", "yes"),
        ("gated-gate", "patch", "pytorchjobs.kubeflow.org/another", "no"),
        ("gated-gate", "delete", "pytorchjobs.kubeflow.org/gated", "no"),
        ("gated-gate", "list", "pytorchjobs.kubeflow.org", "no"),
        ("gated-gate", "get", "secrets", "no"),
        ("gated", "get", "pytorchjobs.kubeflow.org/gated", "no"),
    ):
        person = f"system:serviceaccount:{kube.namespace}:{account}"
        command = ("kubectl", "-n", kube.namespace, "auth", "can-i", verb, what, "--as", person)
        assert run(*command, check=False).stdout.strip() == expected, (account, verb, what)


def test_only_the_gate_has_a_token(kube: Kube) -> None:
    """As the API server made the pods: no other one has a service account's volume."""
    upgrade(kube, values_of("tokens", preparation={"shards": 2}))
    pods = until("both pods", lambda: two(kube.items("pods", "caspi.dev/round=tokens")), 60, kube)
    with_token = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for pod in pods
        for volume in pod["spec"]["volumes"]
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))
    }
    assert with_token == {"gate"}


def two(pods: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return pods if len(pods) == 2 else None


def test_chart_installs_from_a_registry(kube: Kube, tmp_path: Path) -> None:
    """Packed and pushed as `make charts` does it, without the ci sets."""
    registry = f"oci://{environment()['CASPI_CLUSTER_PUSH']}/charts"
    kube.helm("package", TRAIN, "--destination", tmp_path)
    (archive,) = tmp_path.glob("caspi-train-*.tgz")
    listed = run("tar", "-tzf", archive).stdout
    assert "values.schema.json" in listed
    assert "/ci/" not in listed
    kube.helm("push", archive, registry, "--plain-http")
    text = yaml.safe_dump(values_of("packaged"))
    kube.helm("install", "packaged", f"{registry}/caspi-train", "--plain-http", "--values", "-", stdin=text)
    assert job(kube, "packaged")
