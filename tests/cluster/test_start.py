"""The gate's pod may do one thing: start its own PyTorchJob. Shown with its Role, on the real API server."""

from __future__ import annotations

from typing import Any

import kubernetes
import pytest
import yaml

import caspi.execution.start as starting
from caspi.errors import UserError
from caspi.execution.start import start
from tests.cluster.kube import Kube, environment, run, until

pytestmark = pytest.mark.cluster

DIGEST = "ab" * 32


def suspended_job(name: str) -> dict[str, Any]:
    """With workers that no node takes: what is tested is whether the operator makes them."""
    container = {
        "name": "pytorch",
        "image": "registry.local:5000/none@sha256:" + "0" * 64,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"containers": [container], "securityContext": security, "nodeSelector": {"caspi.dev/none": "true"}}
    worker = {
        "replicas": 1,
        "restartPolicy": "ExitCode",
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "annotations": {starting.DIGEST: DIGEST}},
        "spec": {"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": worker}},
    }


def gate_account(name: str) -> list[dict[str, Any]]:
    """As charts/caspi-train makes it."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": f"{name}-gate"}}
    rule = {
        "apiGroups": ["kubeflow.org"],
        "resources": ["pytorchjobs"],
        "resourceNames": [name],
        "verbs": ["get", "patch"],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"{name}-gate"}},
        {**role, "kind": "Role", "rules": [rule]},
        {
            **role,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": f"{name}-gate"},
            "subjects": [{"kind": "ServiceAccount", "name": f"{name}-gate"}],
        },
    ]


@pytest.fixture
def gate(kube: Kube) -> Any:
    """An API client with nothing but the token of the gate of `first`."""
    kube.apply(suspended_job("first"), suspended_job("second"), *gate_account("first"))
    token = kube.kubectl("create", "token", "first-gate", "--duration=10m").strip()
    config = yaml.safe_load(run("kubectl", "config", "view", "--minify", "--raw", "--flatten").stdout)
    settings = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config_from_dict(config, client_configuration=settings)
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    settings.no_proxy = environment().get("NO_PROXY", "127.0.0.1,localhost")
    return kubernetes.client.ApiClient(settings)


def test_the_gate_starts_its_own_job_and_no_other(kube: Kube, gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PATIENCE", (1.0,) * 3)
    namespace = kube.namespace
    until("first is suspended", lambda: kube.condition("pytorchjob", "first") == "Suspended", 60, kube)
    with pytest.raises(UserError, match="trains round abababababab, and cdcdcdcdcdcd was prepared here"):
        start(namespace, "first", "cd" * 32, None, gate)
    assert kube.workers("first") == []

    assert start(namespace, "first", DIGEST, None, gate) == f"pytorchjob {namespace}/first is now started"
    until("the operator makes the worker", lambda: kube.workers("first"), 60, kube)
    assert start(namespace, "first", DIGEST, None, gate) == f"pytorchjob {namespace}/first is started already"

    with pytest.raises(UserError, match=r"may not get or patch it \(403\)"):
        start(namespace, "second", DIGEST, None, gate)
    core = kubernetes.client.CoreV1Api(gate)
    for forbidden in (
        lambda: core.list_namespaced_secret(namespace),
        lambda: core.list_namespaced_pod(namespace),
        lambda: kubernetes.client.CustomObjectsApi(gate).list_namespaced_custom_object(
            "kubeflow.org", "v1", namespace, "pytorchjobs"
        ),
    ):
        with pytest.raises(kubernetes.client.ApiException) as caught:
            forbidden()
        assert caught.value.status == 403


def test_a_queue_gets_the_job_as_it_is(kube: Kube, gate: Any) -> None:
    kube.kubectl("delete", "pytorchjob", "first", "--ignore-not-found")
    kube.apply(suspended_job("first"))
    start(kube.namespace, "first", DIGEST, "gpus", gate)
    found = kube.get("pytorchjob", "first")
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert found["spec"]["runPolicy"]["suspend"] is True
