"""manifests/ on a real API server: accepted, enforced, enough for who submits and no more; alerts by promtool."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kube import HERE, HOUSE, Kube, environment, run

pytestmark = pytest.mark.cluster
NAMESPACE = "test-manifests"
UPSTREAM = "github.com/kubeflow/training-operator@v1.9.4"
"""The same tree as the commit that manifests/operator names, checked by Go's checksum database."""
SUBMITTER = ("dana", "caspi-submitters")
VIEWER = ("eve", "caspi-viewers")
SERVER = ("sam", "caspi-servers")
POD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "main",
            "image": "registry.example.com/none",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, with overlays of our own next to the others: the same in a namespace of the tests."""
    folder = tmp_path_factory.mktemp("kustomize") / "manifests"
    shutil.copytree(HOUSE / "manifests", folder)
    for name in ("laptop", "8xa100"):
        mine = folder / f"overlays/{name}-test"
        mine.mkdir()
        text = {"namespace": NAMESPACE, "resources": [f"../{name}"]}
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return folder


@pytest.fixture(scope="module")
def kube(manifests: Path) -> Iterator[Kube]:
    """The laptop overlay, applied; what it makes outside of its namespace goes too, unless it was there before."""
    run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
    shared = ("priorityclass/caspi-training", "clusterrole/caspi-nodes", "clusterrolebinding/caspi-nodes")
    there = run("kubectl", "get", *shared, "--ignore-not-found", "-o", "name").stdout
    run("kubectl", "apply", "-k", manifests / "overlays/laptop-test")
    yield Kube(NAMESPACE)
    made = [name for name in shared if name.split("/")[0] not in there]
    run("kubectl", "delete", f"namespace/{NAMESPACE}", *made, "--wait=false")


def built(folder: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(run("kubectl", "kustomize", folder).stdout) if one]


def pod(name: str = "tried", **more: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps({**POD, **more.pop("spec", {})}))
    spec["containers"][0] |= more
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def refused(kube: Kube, thing: dict[str, Any]) -> str:
    """What the server says; "" when it would take it."""
    text = yaml.safe_dump(thing)
    done = run("kubectl", "-n", kube.namespace, "create", "--dry-run=server", "-f", "-", stdin=text, check=False)
    return str(done.stderr) if done.returncode else ""


def may(who: tuple[str, str], asked: list[tuple[str, str, str]], namespace: str = NAMESPACE) -> list[bool]:
    """Whether a user of a group may: (verb, resource[/subresource], API group), all in one request to kubectl."""
    reviews = []
    for verb, resource, group in asked:
        name, _, part = resource.partition("/")
        what = {"verb": verb, "resource": name, "subresource": part, "group": group, "namespace": namespace}
        spec = {"user": who[0], "groups": [who[1], "system:authenticated"], "resourceAttributes": what}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    answer = run("kubectl", "create", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump_all(reviews)).stdout
    documents = [one for one in yaml.safe_load_all(answer) if one]
    found = documents[0]["items"] if documents[0]["kind"] == "List" else documents
    return [bool(one["status"]["allowed"]) for one in found]


def test_applying_again_changes_nothing(kube: Kube, manifests: Path) -> None:
    lines = run("kubectl", "apply", "-k", manifests / "overlays/laptop-test").stdout.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if not line.endswith(" unchanged")] == []


def test_the_a100_overlay_is_accepted(kube: Kube, manifests: Path) -> None:
    """By a server-side dry run; kinds of Kueue and of the Prometheus operator where the cluster knows them."""
    known = set(run("kubectl", "api-resources", "--no-headers", "-o", "name").stdout.split())
    optional = {"ResourceFlavor", "ClusterQueue", "LocalQueue", "PrometheusRule"}
    objects = built(manifests / "overlays/8xa100-test")
    assert optional <= {one["kind"] for one in objects}
    ours = [one for one in objects if one["kind"] not in optional or f"{one['kind'].lower()}s" in known]
    # the claim of the other overlay is there, and a claim's class can't be changed
    ours = [one for one in ours if one["kind"] != "PersistentVolumeClaim"]
    kube.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(ours))
    (claim,) = (one for one in objects if one["kind"] == "PersistentVolumeClaim")
    claim["metadata"]["name"] = "another"
    assert "CHANGE-me" in refused(kube, claim), "said at once: a claim that is made keeps its class"
    claim["spec"]["storageClassName"] = "fast"
    assert "exceeded quota" in refused(kube, claim), "500 Gi are more than the laptop's 50"
    claim["spec"]["resources"]["requests"]["storage"] = "1Gi"
    assert refused(kube, claim) == ""


def test_the_operator_is_accepted_and_passes_the_restricted_profile(kube: Kube, manifests: Path) -> None:
    file = manifests / "operator/kustomization.yaml"
    text = yaml.safe_load(file.read_text())
    if shutil.which("go", path=environment()["PATH"]):
        folder = Path(json.loads(run("go", "mod", "download", "-json", UPSTREAM).stdout)["Dir"])
        shutil.copytree(folder / "manifests", manifests / "upstream")
        run("chmod", "-R", "u+w", manifests / "upstream")
        file.write_text(yaml.safe_dump({**text, "resources": ["../upstream/overlays/standalone"]}))
    objects = built(file.parent)
    kinds = [one["kind"] for one in objects]
    assert kinds.count("CustomResourceDefinition") == 1
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (hooks,) = (one for one in objects if one["kind"] == "ValidatingWebhookConfiguration")
    assert [one["name"] for one in hooks["webhooks"]] == ["validator.pytorchjob.training-operator.kubeflow.org"]
    template = deployment["spec"]["template"]["spec"]
    assert template["containers"][0]["image"].endswith("training-operator:v1-93c5489")
    template.pop("serviceAccountName")  # it is not in this namespace
    assert refused(kube, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template}) == ""
    everything = yaml.safe_dump_all(objects)
    run("kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=everything)


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"securityContext": {"allowPrivilegeEscalation": True}}, "violates PodSecurity"),
        ({"spec": {"hostNetwork": True}}, "violates PodSecurity"),
        ({"spec": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}}, "violates PodSecurity"),
        ({"resources": {"requests": {"cpu": "7"}}}, "exceeded quota: rounds, requested: requests.cpu=7"),
        ({"resources": {"limits": {"nvidia.com/gpu": "1"}}}, "exceeded quota: rounds, requested: requests.nvidia"),
    ],
    ids=["as it should be", "escalation", "host network", "host path", "quota", "gpu quota"],
)
def test_what_the_namespace_refuses(kube: Kube, change: dict[str, Any], said: str) -> None:
    answer = refused(kube, pod(**change))
    assert said in answer and bool(said) == bool(answer)


SUBMITTER_MAY = [
    ("create", "pytorchjobs", "kubeflow.org"),
    ("delete", "pytorchjobs", "kubeflow.org"),
    ("create", "jobs", "batch"),
    ("create", "configmaps", ""),
    ("create", "roles", "rbac.authorization.k8s.io"),
    ("get", "pods/log", ""),
    ("list", "events", ""),
    ("get", "resourcequotas", ""),
    ("create", "persistentvolumeclaims", ""),
    ("get", "nodes", ""),
]
SUBMITTER_MAY_NOT = [
    ("create", "pods/exec", ""),
    ("create", "pods/portforward", ""),
    ("create", "serviceaccounts/token", ""),
    ("delete", "persistentvolumeclaims", ""),
    ("watch", "secrets", ""),
    ("update", "resourcequotas", ""),
    ("update", "pytorchjobs/status", "kubeflow.org"),
    ("delete", "networkpolicies/status", "networking.k8s.io"),
    ("escalate", "roles", "rbac.authorization.k8s.io"),
    ("bind", "roles", "rbac.authorization.k8s.io"),
    ("deletecollection", "pods", ""),
    ("create", "deployments", "apps"),
    ("list", "nodes", ""),
    ("create", "clusterroles", "rbac.authorization.k8s.io"),
    ("create", "persistentvolumes", ""),
    ("create", "namespaces", ""),
    ("patch", "namespaces", ""),
]


def test_what_a_submitter_may(kube: Kube) -> None:
    assert dict(zip(SUBMITTER_MAY, may(SUBMITTER, SUBMITTER_MAY), strict=True)) == dict.fromkeys(SUBMITTER_MAY, True)
    assert [asked for asked, yes in zip(SUBMITTER_MAY_NOT, may(SUBMITTER, SUBMITTER_MAY_NOT), strict=True) if yes] == []
    elsewhere = [asked for asked in SUBMITTER_MAY if asked[1] != "nodes"]
    assert not any(may(SUBMITTER, elsewhere, namespace="default")), "another namespace"


def test_a_viewer_only_looks(kube: Kube) -> None:
    writing = [("create", *rest) for _, *rest in SUBMITTER_MAY] + [("get", "secrets", ""), ("list", "secrets", "")]
    assert not any(may(VIEWER, [(verb, resource, group) for verb, resource, group in writing]))
    looking = [("list", "pods", ""), ("get", "pods/log", ""), ("list", "pytorchjobs", "kubeflow.org")]
    assert all(may(VIEWER, looking))


def values(folder: Path, name: str) -> Path:
    """A round of one CPU worker, prepared first, so that the gate with its role is a part of it."""
    text = (HOUSE / "rounds/demo-r1.yaml").read_text().replace("round: demo-r1", f"round: {name}")
    small = {"cpu": "1", "memory": "2Gi"}
    file = folder / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "round": {"name": name, "digest": hashlib.sha256(text.encode()).hexdigest(), "file": text},
                "cluster": (HOUSE / "clusters/laptop.yaml").read_text(),
                "image": {"repository": "registry.example.com/none", "digest": f"sha256:{'0' * 64}"},
                "workers": {"resources": small},
                "preparation": {"resources": small},
                "disruption": {"enabled": True},
            }
        )
    )
    return file


def test_a_submitter_installs_upgrades_and_uninstalls_by_helm(kube: Kube, tmp_path: Path) -> None:
    command = ["helm", "-n", NAMESPACE, "upgrade", "--install", "roles", "charts/caspi-train"]
    file = values(tmp_path, "roles")

    def by(who: tuple[str, str]) -> list[str]:
        return ["--kube-as-user", who[0], "--kube-as-group", who[1], "--kube-as-group", "system:authenticated"]

    looks = run(*command, "-f", file, *by(VIEWER), check=False)
    assert looks.returncode and "secrets is forbidden" in looks.stderr
    serves = run(*command, "-f", file, *by(SERVER), check=False)
    assert serves.returncode and "forbidden" in serves.stderr
    run("helm", "-n", NAMESPACE, "uninstall", "roles", "--ignore-not-found")
    run(*command, "-f", file, *by(SUBMITTER))
    run(*command, "-f", file, "--set", "disruption.enabled=false", *by(SUBMITTER))
    assert kube.condition("pytorchjob", "roles") == "Suspended"
    run("helm", "-n", NAMESPACE, "uninstall", "roles", *by(SUBMITTER))
    assert kube.get("pytorchjob", "roles") == {}


def test_nobody_grants_more_than_they_have(kube: Kube) -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "more"}}
    text = yaml.safe_dump({**role, "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}]})
    arguments = ["create", "-f", "-", "--as", SUBMITTER[0], "--as-group", SUBMITTER[1]]
    done = run("kubectl", "-n", NAMESPACE, *arguments, stdin=text, check=False)
    assert "attempting to grant RBAC permissions not currently held" in done.stderr


def promtool(*arguments: str | Path) -> Any:
    assert shutil.which("promtool", path=environment()["PATH"]), "no promtool: `tests/cluster/tools` builds it"
    return run("promtool", *arguments, check=False)


def rules(folder: Path, annotated: bool, spec: dict[str, Any] | None = None) -> Path:
    """The groups of the PrometheusRule as Prometheus reads them."""
    spec = spec or yaml.safe_load((HOUSE / "manifests/monitoring/rules.yaml").read_text())["spec"]
    if not annotated:
        for group in spec["groups"]:
            for rule in group["rules"]:
                rule.pop("annotations", None)
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def test_alert_rules_are_valid(tmp_path: Path) -> None:
    done = promtool("check", "rules", rules(tmp_path, annotated=True))
    assert done.returncode == 0 and "SUCCESS: 20 rules found" in done.stdout, done.stdout + done.stderr


def test_alerts_fire_for_a_fault_and_leave_healthy_rounds_alone(tmp_path: Path) -> None:
    rules(tmp_path, annotated=False)
    cases = tmp_path / "alerts.yaml"
    shutil.copy(HERE / "alerts.yaml", cases)
    done = promtool("test", "rules", cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_sees_a_rule_that_is_wrong(tmp_path: Path) -> None:
    file = rules(tmp_path, annotated=False)
    shutil.copy(HERE / "alerts.yaml", tmp_path / "alerts.yaml")
    file.write_text(file.read_text().replace("> 50", "> 500"))
    assert promtool("test", "rules", tmp_path / "alerts.yaml").returncode != 0


OTHER_BUDGET = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - name: hebrew-r1 may cost more than the others
    interval: 1m
    input_series:
      - series: 'caspi_train_cost_total{namespace="asr", round="hebrew-r1", pod="a", currency="USD"}'
        values: '0+0.5x200'
      - series: 'caspi_train_cost_total{namespace="asr", round="other", pod="b", currency="USD"}'
        values: '0+0.5x200'
    alert_rule_test:
      - eval_time: 120m
        alertname: CaspiCostOver
        exp_alerts: [{exp_labels: {severity: critical, namespace: asr, round: other}}]
      - eval_time: 180m
        alertname: CaspiCostOver
        exp_alerts:
          - {exp_labels: {severity: critical, namespace: asr, round: hebrew-r1}}
          - {exp_labels: {severity: critical, namespace: asr, round: other}}
"""


def test_another_budget_for_one_round_as_documented(manifests: Path, tmp_path: Path) -> None:
    """The overlay of docs/metrics.md, built by kustomize and read by Prometheus."""
    page = (HOUSE / "docs/metrics.md").read_text()
    mine = manifests / "overlays/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    (made,) = (one for one in built(mine) if one["kind"] == "PrometheusRule")
    (tmp_path / "alerts.yaml").write_text(OTHER_BUDGET)
    rules(tmp_path, annotated=False)
    assert promtool("test", "rules", tmp_path / "alerts.yaml").returncode != 0, "without the patch it fails"
    rules(tmp_path, annotated=False, spec=made["spec"])
    done = promtool("test", "rules", tmp_path / "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
