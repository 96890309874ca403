"""Every ci/ value set of every chart: linted, rendered as before, right by the schemas, and accepted by the API server
in a namespace that enforces the restricted profile. A PyTorchJob's pods are tried as pods: nobody checks them in it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.rendering import HERE, HOUSE, TRAIN, goldens, helm, merged, release_of, render, value_sets
from tests.cluster.kube import Kube, environment, run, until
from tests.cluster.schemas import LOCATION, write_schemas

pytestmark = pytest.mark.cluster

SETS = [path for chart in sorted(HOUSE.glob("charts/*/Chart.yaml")) for path in value_sets(chart.parent)]
BAD = [
    (chart.parent, case)
    for chart in sorted(HOUSE.glob("charts/*/Chart.yaml"))
    if (HERE / chart.parent.name / "bad-values.yaml").exists()
    for case in yaml.safe_load((HERE / chart.parent.name / "bad-values.yaml").read_text("utf-8"))
]
each_set = pytest.mark.parametrize("path", SETS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
PRIORITY = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "research"}, "value": 1}
PINS_MEMORY = "hebrew-rdma"
"""The one round whose pods the restricted profile refuses, and for what."""


def objects(path: Path, namespace: str = "asr") -> list[dict[str, Any]]:
    values = yaml.safe_load(path.read_text("utf-8"))
    done = render(path.parents[1], values, namespace=namespace)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def pods_of(made: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pods that objects with a pod template would make, as pods."""
    for one in made:
        spec = one.get("spec", {})
        templates = [replica["template"] for replica in spec.get("pytorchReplicaSpecs", {}).values()]
        if one["kind"] in ("Job", "Deployment"):
            templates = [spec["template"]]
        for template in templates:
            metadata = {**template["metadata"], "name": f"{one['metadata']['name']}-0"}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(template["spec"])}


@pytest.fixture(scope="module")
def server(kube: Kube) -> Iterator[Kube]:
    """With what the value sets name that is not theirs: a priority class, and the kind PodMonitor."""
    run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(PRIORITY))
    if run("kubectl", "get", "crd", "podmonitors.monitoring.coreos.com", check=False).returncode:
        run("kubectl", "apply", "-f", HERE / "podmonitor-crd.yaml")
    until("PodMonitor is served", lambda: "PodMonitor" in run("kubectl", "get", "--raw", "/openapi/v2").stdout, 60)
    yield kube
    run("kubectl", "delete", "priorityclass", "research", check=False)
    run("kubectl", "delete", "crd", "--selector", "caspi.dev/for=tests", check=False)


@pytest.fixture(scope="module")
def schemas(server: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    made = [one for path in SETS for one in objects(path)]
    kinds = {(one["apiVersion"], one["kind"]) for one in [*made, *pods_of(made)]}
    write_schemas(json.loads(run("kubectl", "get", "--raw", "/openapi/v2").stdout), kinds, folder)
    return folder


def conform(made: list[dict[str, Any]], schemas: Path) -> subprocess.CompletedProcess[str]:
    command = ["kubeconform", "-strict", "-output", "tap", "-schema-location", f"{schemas}/{LOCATION}", "-"]
    text = yaml.safe_dump_all(made)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=dict(environment()))


def dry_run(kube: Kube, *made: dict[str, Any]) -> str:
    """What a person would read: what was refused, and warnings, which count too."""
    text = yaml.safe_dump_all(made)
    done = run("kubectl", "-n", kube.namespace, "apply", "--dry-run=server", "-f", "-", stdin=text, check=False)
    return str(done.stderr)


@each_set
def test_lint_is_clean(path: Path) -> None:
    done = helm("lint", "--strict", path.parents[1], "--values", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("chart", [path.parent for path in sorted(HOUSE.glob("charts/*/Chart.yaml"))], ids=str)
def test_renders_as_before(chart: Path) -> None:
    """Rewrite the goldens with `python -m tests.charts.rendering`, and read the difference."""
    made = goldens(chart)
    assert set(made) == set((HERE / chart.name / "golden").iterdir())
    for path, text in made.items():
        assert path.read_text("utf-8") == text, path.name


@pytest.mark.parametrize(("chart", "case"), BAD, ids=[f"{chart.name}-{case['values']}"[:70] for chart, case in BAD])
def test_bad_values_are_refused_in_readable_lines(chart: Path, case: dict[str, Any]) -> None:
    """Exactly the lines of the table, and none of a program's."""
    first = yaml.safe_load(value_sets(chart)[0].read_text("utf-8"))
    done = render(chart, merged(first, case["values"]), release=release_of(first))
    assert done.returncode == 1
    said = [line.strip() for line in done.stderr.splitlines()[1:] if line.startswith(("- at", "  "))]
    assert said == case["lines"].strip().splitlines(), done.stderr


@each_set
def test_objects_and_their_pods_are_right_by_the_schemas(path: Path, schemas: Path) -> None:
    made = objects(path)
    done = conform([*made, *pods_of(made)], schemas)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not ok" not in done.stdout
    assert "skip" not in done.stdout.lower()


def test_schemas_find_what_is_wrong(schemas: Path) -> None:
    """A misspelt field of a PyTorchJob, which its API server would silently drop; a number where a text must be."""
    job = next(one for one in objects(value_sets(TRAIN)[0]) if one["kind"] == "PyTorchJob")
    assert conform([job], schemas).returncode == 0
    for where, value in (("rdzvHosts", "a"), ("maxRestarts", "3")):
        wrong = json.loads(json.dumps(job))
        wrong["spec"]["elasticPolicy"][where] = value
        assert conform([wrong], schemas).returncode == 1, where


@each_set
def test_api_server_accepts_objects_and_pods_without_a_warning(path: Path, server: Kube) -> None:
    made = objects(path, server.namespace)
    accounts = [one for one in made if one["kind"] == "ServiceAccount"]
    server.apply(*accounts)
    said = dry_run(server, *made, *pods_of(made))
    if release_of(yaml.safe_load(path.read_text("utf-8"))) == PINS_MEMORY:
        (line,) = said.strip().splitlines()
        assert 'violates PodSecurity "restricted:latest": unrestricted capabilities (container "pytorch"' in line
        assert "IPC_LOCK" in line
    else:
        assert said == ""


def test_restricted_profile_is_enforced_here(server: Kube) -> None:
    """The planted fault: the same pod without its seccomp profile is refused."""
    pod = next(pods_of(objects(value_sets(TRAIN)[0], server.namespace)))
    server.apply(*(one for one in objects(value_sets(TRAIN)[0], server.namespace) if one["kind"] == "ServiceAccount"))
    assert dry_run(server, pod) == ""
    del pod["spec"]["securityContext"]["seccompProfile"]
    assert "seccompProfile" in dry_run(server, pod)
