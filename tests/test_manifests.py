"""manifests/: whole, consistent with each other and with docs/metrics.md, and no wider than they say. No cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.fleet.cancel import OWNED

HOUSE = Path(__file__).parents[1]
MANIFESTS = HOUSE / "manifests"
OVERLAYS = sorted(path.parent for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
METRIC = re.compile(r"\bcaspi_[a-z_]+\b")
THRESHOLDS = {
    "CaspiNoStep": "5m",
    "CaspiWaitsForNodes": "== 0",
    "CaspiSlow": "< 1.5",
    "CaspiRestarts": ">= 2",
    "CaspiNodesComeAndGo": ">= 10",
    "CaspiCheckpointOld": "> 7200",
    "CaspiNoCheckpoint": "unless",
    "CaspiLossNotFinite": "Inf",
    "CaspiLossRises": "> 1.2 *",
    "CaspiGradientsExplode": "> 50",
    "CaspiGradientsVanish": "< 0.01",
    "CaspiWerStands": "offset 3h",
    "CaspiWarned": "> 0",
    "CaspiCostForecast": 'cost_alert_usd{level="critical"}',
    "CaspiCostHalf": 'cost_alert_usd{level="info"}',
    "CaspiCostNearly": 'cost_alert_usd{level="warning"}',
    "CaspiCostOver": 'cost_alert_usd{level="critical"}',
}
BUDGET = {"info": 25, "warning": 40, "critical": 50}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def objects(folder: Path) -> Iterator[dict[str, Any]]:
    """What the files of a folder's kustomization declare, folders in it included, remote ones not."""
    kustomization = documents(folder / "kustomization.yaml")[0]
    for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        path = (folder / name).resolve()
        if path.is_dir():
            yield from objects(path)
        elif not name.startswith("https://"):
            yield from documents(path)


def groups() -> list[dict[str, Any]]:
    return list(documents(MANIFESTS / "monitoring/rules.yaml")[0]["spec"]["groups"])


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in groups() for rule in group["rules"] if "alert" in rule}


def patched_budget() -> list[dict[str, Any]]:
    """The JSON patch that docs/metrics.md gives for another budget."""
    page = (HOUSE / "docs/metrics.md").read_text()
    (overlay,) = (yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert overlay["patches"][0]["target"] == {"kind": "PrometheusRule", "name": "caspi-training"}
    return list(yaml.safe_load(overlay["patches"][0]["patch"]))


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((MANIFESTS / "monitoring/caspi-training.json").read_text())
    return list(dashboard["panels"])


def documented() -> set[str]:
    return set(re.findall(r"^\| `(caspi_[a-z_]+)` \|", (HOUSE / "docs/metrics.md").read_text(), re.MULTILINE))


def unknown(expression: str) -> set[str]:
    """Metrics of an expression that docs/metrics.md does not have."""
    return set(METRIC.findall(expression)) - documented()


def test_every_file_is_used() -> None:
    for kustomization in MANIFESTS.rglob("kustomization.yaml"):
        folder, text = kustomization.parent, documents(kustomization)[0]
        named = [*text.get("resources", []), *text.get("components", [])]
        named += [patch["path"] for patch in text.get("patches", []) if "path" in patch]
        named += [name for made in text.get("configMapGenerator", []) for name in made["files"]]
        local = [name for name in named if not name.startswith("https://")]
        assert [name for name in local if not (folder / name).exists()] == []
        there = {path for path in folder.rglob("*") if path.is_file() and path != kustomization}
        if not any((folder / name).is_dir() for name in local):
            assert there == {folder / name for name in local}, f"{folder.name}: a file that nothing includes"


def test_no_two_objects_have_one_name() -> None:
    for overlay in OVERLAYS:
        names = [(one["kind"], one["metadata"]["name"]) for one in objects(overlay)]
        assert len(names) == len(set(names)), overlay.name


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_patches_name_what_there_is(overlay: Path) -> None:
    there = {(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects(overlay)}
    for patch in documents(overlay / "kustomization.yaml")[0]["patches"]:
        meant = yaml.safe_load(patch["patch"])
        assert (meant["apiVersion"], meant["kind"], meant["metadata"]["name"]) in there


def test_the_laptop_needs_nothing_but_kubernetes() -> None:
    own = {"v1", "apps/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1", "scheduling.k8s.io/v1"}
    assert {one["apiVersion"] for one in objects(MANIFESTS / "overlays/laptop")} <= own


def test_what_is_to_be_changed_says_so_in_the_same_line() -> None:
    text = (MANIFESTS / "overlays/8xa100/kustomization.yaml").read_text()
    lines = [line for line in text.splitlines() if "# CHANGE" in line]
    assert len(lines) == 4 and "Four lines" in text
    assert all("CHANGE" in line for line in text.splitlines() if "CHANGE-me" in line)


def test_no_secrets() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        for one in documents(path):
            assert one.get("kind") != "Secret", path
        assert not re.search(r"(?i)password|hf_[a-z0-9]{20}|BEGIN [A-Z ]*PRIVATE", path.read_text()), path


def test_the_restricted_profile_is_enforced() -> None:
    (namespace,) = (one for one in objects(MANIFESTS / "overlays/laptop") if one["kind"] == "Namespace")
    modes = {name.split("/")[1]: value for name, value in namespace["metadata"]["labels"].items()}
    assert modes == {"enforce": "restricted", "warn": "restricted", "audit": "restricted"}


def test_the_operator_is_pinned_by_a_commit() -> None:
    (remote,) = documents(MANIFESTS / "operator/kustomization.yaml")[0]["resources"]
    assert re.fullmatch(
        r"https://github\.com/kubeflow/trainer//manifests/overlays/standalone\?ref=[0-9a-f]{40}", remote
    )


def grants(role: str) -> set[tuple[str, str]]:
    (found,) = (one for one in documents(MANIFESTS / f"base/rbac/{role}.yaml") if one["kind"] == "Role")
    rules = found["rules"]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_roles_are_no_wider_than_they_say() -> None:
    reading = {"get", "list", "watch"}
    assert {verb for _, verb in grants("viewer")} == reading
    assert "secrets" not in {resource for resource, _ in grants("viewer")}
    for role in ("viewer", "submitter", "server"):
        resources, verbs = zip(*grants(role), strict=True)
        assert "*" not in {*resources, *verbs}, role
        assert not {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"} & set(resources), role
        assert not {"bind", "escalate", "impersonate", "deletecollection"} & set(verbs), role
    assert ("persistentvolumeclaims", "delete") not in grants("submitter"), "rounds are on it"
    assert ("secrets", "watch") not in grants("submitter")


def test_the_gate_asks_for_nothing_that_a_submitter_lacks() -> None:
    """Kubernetes refuses to let anybody grant more than they have."""
    chart = (HOUSE / "charts/caspi-train/templates/accounts.yaml").read_text()
    (resource,), (verbs,) = re.findall(r"resources: \[(.+)\]", chart), re.findall(r"verbs: \[(.+)\]", chart)
    have = grants("submitter") | grants("viewer")
    assert {(resource, verb.strip()) for verb in verbs.split(",")} <= have


def test_a_submitter_may_cancel() -> None:
    """`caspi cancel` lists every kind that a release may have made, and deletes what Helm left."""
    have = grants("submitter") | grants("viewer")
    kinds = {path.rsplit("/", 1)[1] for path in OWNED}
    assert {kind for kind in kinds if (kind, "list") not in have} == set()
    assert {kind for kind in kinds if (kind, "delete") not in have} == {"services"}, "those have an owner: the job"


def pipeline_grants() -> set[tuple[str, str]]:
    (role,) = (one for one in documents(MANIFESTS / "pipelines/rbac.yaml") if one["kind"] == "Role")
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_a_pipeline_may_train_and_cancel_and_no_more_than_a_submitter() -> None:
    have = pipeline_grants()
    assert have < grants("submitter") | grants("viewer")
    prepares = {"jobs", "roles", "rolebindings"}  # the pipeline has prepared
    for kind in {path.rsplit("/", 1)[1] for path in OWNED} - {"pods", "services"}:
        made = set() if kind in prepares else {"create", "patch"}
        assert {verb for one, verb in have if one == kind} == {"get", "list", "delete", *made}, kind
    assert ("pods", "create") not in have and ("persistentvolumeclaims", "delete") not in have


def test_what_is_to_be_changed_for_pipelines_says_so() -> None:
    texts = [path.read_text() for path in (MANIFESTS / "pipelines").glob("*.yaml")]
    lines = [line for text in texts for line in text.splitlines() if re.search(r"# CHANGE\b", line)]
    assert len(lines) == 4 and any("Four lines" in text for text in texts)
    assert all("# CHANGE" in line for text in texts for line in text.splitlines() if "CHANGE-me" in line)


@pytest.mark.parametrize("chart, role", [("caspi-train", "submitter"), ("caspi-serve", "server")])
def test_a_role_may_make_every_kind_of_its_chart(chart: str, role: str) -> None:
    templates = "\n".join(path.read_text() for path in (HOUSE / "charts" / chart / "templates").rglob("*.yaml"))
    kinds = set(re.findall(r"^kind: (\w+)$", templates, re.MULTILINE))
    assert kinds
    plural = {kind: f"{kind.lower()[:-1]}ies" if kind.endswith("y") else f"{kind.lower()}s" for kind in kinds}
    have = grants(role) | grants("viewer")
    lacking = {kind for kind in kinds if not {(plural[kind], "get"), (plural[kind], "create")} <= have}
    assert not lacking


def test_alerts_and_dashboard_use_all_metrics_and_no_others() -> None:
    expressions = [rule["expr"] for rule in alerts().values()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    assert {name for one in expressions for name in unknown(one)} == set()
    assert set(METRIC.findall(" ".join(expressions))) == documented()


def test_a_metric_that_is_not_documented_is_found() -> None:
    assert unknown("max(caspi_train_steps) - caspi_train_stepp") == {"caspi_train_stepp"}


def test_thresholds() -> None:
    assert {name for name, rule in alerts().items() if THRESHOLDS.get(name, "?") in rule["expr"]} == set(THRESHOLDS)
    assert set(alerts()) == set(THRESHOLDS)


def test_the_budget_is_in_one_place() -> None:
    """First, because the patches that change it name it by its place."""
    first, *others = groups()
    assert first["name"] == "caspi-budget"
    assert {rule["record"] for rule in first["rules"]} == {"caspi:cost_alert_usd"}
    amounts = {rule["labels"]["level"]: float(rule["expr"].split(" ")[0]) for rule in first["rules"]}
    assert amounts == BUDGET
    assert not [rule for group in others for rule in group["rules"] if "record" in rule]
    severities = {name: alerts()[name]["labels"]["severity"] for name in THRESHOLDS if name.startswith("CaspiCost")}
    told = {"CaspiCostHalf": "info", "CaspiCostNearly": "warning", "CaspiCostOver": "critical"}
    assert severities == {**told, "CaspiCostForecast": "warning"}


def test_the_patch_of_the_documentation_changes_the_budget_and_nothing_else() -> None:
    for change in patched_budget():
        assert change["op"] == "replace"
        place = re.fullmatch(r"/spec/groups/0/rules/(\d)/expr", change["path"])
        assert place and (before := groups()[0]["rules"][int(place[1])]["expr"])
        assert change["value"].strip().endswith(f"or {before}"), "a round that is not named keeps its amount"


def test_every_alert_says_what_and_the_way_out() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert set(rule["annotations"]) == {"summary", "way_out"}, name
        assert "{{ $labels.round }}" in rule["annotations"]["summary"], name
        assert len(rule["annotations"]["way_out"]) > 30, name


def test_every_alert_is_tried_in_both_ways() -> None:
    """tests/cluster/alerts.yaml, which promtool runs: a planted fault for each, next to a round that is well."""
    cases = documents(HOUSE / "tests/cluster/alerts.yaml")[0]["tests"]
    fires = {one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]}
    assert fires == set(alerts())
    for case in cases:
        assert 'round="good"' in " ".join(series["series"] for series in case["input_series"]), case["name"]


def test_the_dashboard_fits() -> None:
    taken: set[tuple[int, int]] = set()
    found = panels()
    assert len({panel["id"] for panel in found}) == len({panel["title"] for panel in found}) == len(found)
    for panel in found:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])


def test_the_dashboard_is_found_by_grafana() -> None:
    (made,) = documents(MANIFESTS / "monitoring/kustomization.yaml")[0]["configMapGenerator"]
    assert made["options"]["labels"] == {"grafana_dashboard": "1"}


def test_the_page_names_what_there_is() -> None:
    page = (HOUSE / "docs/cluster-setup.md").read_text()
    paths = set(re.findall(r"manifests/[\w./-]*\w", page))
    assert len(paths) >= 6
    assert {path for path in paths if not (HOUSE / path).exists()} == set()
    assert f"{len(alerts())} alerts" in page
