"""What clusters say when they refuse, as they said it, and the line that people get."""

from __future__ import annotations

import pytest

from caspi.fleet.refusals import as_error, refusal

SAID = [
    (
        'Error creating: pods "demo-worker-1" is forbidden: exceeded quota: compute, requested: limits.memory=1Gi, '
        "used: limits.memory=1Gi, limited: limits.memory=1536Mi",
        "quota-exceeded",
        "quota compute does not allow it: asks for limits.memory=1Gi, used are limits.memory=1Gi of "
        "limits.memory=1536Mi; ask for less",
    ),
    (
        'pods "x" is forbidden: failed quota: compute: must specify limits.cpu for: main',
        "quota-exceeded",
        "quota compute: must specify limits.cpu for: main; the pod has to say how much it takes",
    ),
    (
        'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged ('
        'container "pytorch" '
        "must not set securityContext.privileged=true)",
        "pod-security",
        "Pod Security restricted:latest of the namespace refuses the pod: privileged (container",
    ),
    (
        'Error: INSTALLATION FAILED: admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied '
        "the "
        "request: spec.pytorchReplicaSpecs[Worker].template.spec.containers: Required value: must be specified\n",
        "webhook-denied",
        "webhook validator.pytorchjob.training-operator.kubeflow.org refused it: spec.pytorchReplicaSpecs[Worker]",
    ),
    (
        'Error: UPGRADE FAILED: Internal error occurred: failed calling webhook "validator.pytorchjob": failed to call '
        'webhook: Post "https://training-operator.kubeflow.svc:443/validate?timeout=10s": dial tcp 10.96.1.2:443: '
        "connect: connection refused",
        "webhook-down",
        "webhook validator.pytorchjob does not answer (failed to call webhook",
    ),
    (
        'Error: unable to build kubernetes objects from release manifest: resource mapping not found for name: "x" '
        'namespace: "asr" from "": no matches for kind "PyTorchJob" in version "kubeflow.org/v1"',
        "no-operator",
        "the cluster has no PyTorchJob: install the training operator first (manifests/)",
    ),
    (
        "Error: UPGRADE FAILED: execution error at (caspi-train/templates/check.yaml:1:4): a problem in the values of "
        "x:\n  round.digest: x in namespace asr is another round (11111111, not 22222222); a changed round needs a new "
        "name\n\nUse --debug flag to render out invalid YAML",
        "chart-refused",
        "round.digest: x in namespace asr is another round (11111111, not 22222222); a changed round needs a new name",
    ),
    (
        "Error: rendered manifests contain a resource that already exists. Unable to continue with install: ConfigMap "
        '"x-round" in namespace "asr" exists and cannot be imported into the current release: invalid ownership '
        "metadata",
        "not-ours",
        "ConfigMap x-round is in namespace asr already, and this release did not make it",
    ),
    ('Error: create: failed to create: namespaces "asr" not found', "no-namespace", "there is no namespace asr"),
    (
        'pods is forbidden: User "dana" cannot list resource "pods" in API group "" in the namespace "asr"',
        "forbidden",
        "dana may not list pods in namespace asr; ask for the role",
    ),
    (
        'nodes is forbidden: User "dana" cannot list resource "nodes" in API group "" at the cluster scope',
        "forbidden",
        "dana may not list nodes; ask for the role",
    ),
    ("Unauthorized", "unauthorized", "the cluster does not know these credentials"),
    ('Error: Kubernetes cluster unreachable: context "prod" does not exist', "no-context", "no context prod;"),
    (
        "Invalid kube-config file. Expected object with name prod in /home/d/.kube/config/contexts list",
        "no-context",
        "the kubeconfig has no context prod;",
    ),
    (
        "HTTPSConnectionPool(host='127.0.0.1', port=1): Max retries exceeded with url: /api (Caused by "
        "NewConnectionError('Failed to establish a new connection: [Errno 111] Connection refused'))",
        "unreachable",
        "the cluster does not answer (Connection refused)",
    ),
    (
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate",
        "untrusted",
        "its certificate is not the one that the kubeconfig trusts",
    ),
    ("etcdserver: request timed out", "overloaded", "the API server could not do it just now (etcdserver: request"),
]


@pytest.mark.parametrize(("said", "name", "line"), SAID)
def test_each_has_its_line(said: str, name: str, line: str) -> None:
    known = refusal(said)
    assert known is not None
    assert known.id == name
    assert line in known.line
    assert "\n" not in known.line


def test_only_what_may_pass_is_tried_again() -> None:
    passing = {known.id for said, _, _ in SAID if (known := refusal(said)) and known.passing}
    assert passing == {"webhook-down", "unreachable", "overloaded"}


def test_what_is_not_known_is_shown_as_it_is() -> None:
    assert refusal("Error: the moon is full") is None
    assert str(as_error("Error: the moon\n is full", "namespace asr")) == "namespace asr: the moon is full"
