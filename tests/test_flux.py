"""What `caspi flux` prints, and the example in manifests/gitops/flux, against strict models of Flux's API.

The models here have the fields that we use, with the rules of Flux's API types; anything else is refused. With the
marker flux the types themselves are asked, and Flux's evaluator of health expressions (tests/flux, in Go).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from caspi.locks.flux import manifests
from caspi.locks.model import lock_text, plain, read_lock
from tests.command import caspi

HOUSE = Path(__file__).parents[1]
LOCK = HOUSE / "tests/data/demo-r2.lock.yaml"
EXAMPLE = HOUSE / "manifests/gitops/flux"

Duration = Annotated[str, StringConstraints(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$")]
Dns = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Dns
    namespace: Dns
    labels: dict[str, Annotated[str, StringConstraints(max_length=63)]] = {}
    annotations: dict[str, str] = {}


class ByDigest(Strict):
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Layer(Strict):
    mediaType: Literal["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]
    operation: Literal["extract", "copy"]


class OciSpec(Strict):
    url: Annotated[str, StringConstraints(pattern=r"^oci://[^@]*$")]
    ref: ByDigest
    interval: Duration
    layerSelector: Layer


class OCIRepository(Strict):
    apiVersion: Literal["source.toolkit.fluxcd.io/v1"]
    kind: Literal["OCIRepository"]
    metadata: Metadata
    spec: OciSpec


class ChartRef(Strict):
    kind: Literal["OCIRepository", "HelmChart", "ExternalArtifact"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]


class Strategy(Strict):
    name: Literal["RemediateOnFailure", "RetryOnFailure"]


class Remediation(Strict):
    retries: int
    remediateLastFailure: bool


class Action(Strict):
    """Of install and upgrade, what both have."""

    disableWait: bool
    disableWaitForJobs: bool
    strategy: Strategy
    remediation: Remediation


class Target(Strict):
    kind: str


class Ignore(Strict):
    paths: list[Annotated[str, StringConstraints(pattern=r"^(/[^/]+)+$")]]
    target: Target


class Drift(Strict):
    mode: Literal["enabled", "warn", "disabled"]
    ignore: list[Ignore]


class ReleaseSpec(Strict):
    interval: Duration
    releaseName: Annotated[str, StringConstraints(min_length=1, max_length=53)]
    chartRef: ChartRef
    install: Action
    upgrade: Action
    driftDetection: Drift
    values: dict[str, Any]


class HelmRelease(Strict):
    apiVersion: Literal["helm.toolkit.fluxcd.io/v2"]
    kind: Literal["HelmRelease"]
    metadata: Metadata
    spec: ReleaseSpec


class GitRef(Strict):
    branch: str


class GitSpec(Strict):
    url: Annotated[str, StringConstraints(pattern=r"^(http|https|ssh)://.*$")]
    interval: Duration
    ref: GitRef


class GitRepository(Strict):
    apiVersion: Literal["source.toolkit.fluxcd.io/v1"]
    kind: Literal["GitRepository"]
    metadata: Metadata
    spec: GitSpec


class SourceRef(Strict):
    kind: Literal["OCIRepository", "GitRepository", "Bucket", "ExternalArtifact"]
    name: Dns


class HealthCheck(Strict):
    apiVersion: str
    kind: str
    name: Dns
    namespace: Dns


class HealthExpression(Strict):
    apiVersion: str
    kind: str
    current: str
    failed: str = ""
    inProgress: str = ""


class KustomizationSpec(Strict):
    interval: Duration
    retryInterval: Duration
    timeout: Duration
    path: str
    prune: bool
    deletionPolicy: Literal["MirrorPrune", "Delete", "WaitForTermination", "Orphan"]
    sourceRef: SourceRef
    healthChecks: list[HealthCheck]
    healthCheckExprs: list[HealthExpression]


class Kustomization(Strict):
    apiVersion: Literal["kustomize.toolkit.fluxcd.io/v1"]
    kind: Literal["Kustomization"]
    metadata: Metadata
    spec: KustomizationSpec


Thing = Annotated[OCIRepository | HelmRelease | GitRepository | Kustomization, Field(discriminator="kind")]
THING: TypeAdapter[Any] = TypeAdapter(Thing)


def printed() -> list[dict[str, Any]]:
    done = caspi("flux", str(LOCK))
    assert done.code == 0, done.err
    return list(yaml.safe_load_all(done.out))


def example() -> list[dict[str, Any]]:
    names = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text("utf-8"))["resources"]
    return [yaml.safe_load((EXAMPLE / name).read_text("utf-8")) for name in names]


@pytest.mark.parametrize("thing", [*printed(), *example()], ids=lambda thing: thing["kind"])
def test_flux_takes_it(thing: dict[str, Any]) -> None:
    THING.validate_python(thing)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "chart"), {"spec": {}}),
        (("spec", "install", "remediation", "retrys"), 0),
        (("spec", "driftDetection", "mode"), "warning"),
        (("spec", "interval"), "1 h"),
        (("apiVersion",), "helm.toolkit.fluxcd.io/v2beta2"),
    ],
)
def test_the_models_refuse_what_flux_does_not_know(place: tuple[str, ...], value: object) -> None:
    _, release = printed()
    at = release
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    with pytest.raises(ValidationError):
        THING.validate_python(release)


def test_a_release_is_what_was_locked() -> None:
    lock = read_lock(LOCK)
    chart, release = printed()
    assert lock.chart.oci
    assert (chart["spec"]["url"], chart["spec"]["ref"]["digest"]) == (lock.chart.oci.repository, lock.chart.oci.digest)
    spec = release["spec"]
    assert spec["values"] == lock.values
    assert spec["chartRef"] == {"kind": "OCIRepository", "name": chart["metadata"]["name"]}
    assert spec["releaseName"] == lock.round, "as `caspi submit` and Argo CD call it: status and cancel find it"
    for one in (chart, release):
        assert one["metadata"]["namespace"] == lock.namespace
        assert one["metadata"]["annotations"] == {"caspi.dev/spec-digest": lock.digest}


def test_nothing_trains_twice() -> None:
    """A remedy is an uninstall or a rollback; a correction of drift is an upgrade; waiting ends in a failure."""
    _, release = printed()
    for action in (release["spec"]["install"], release["spec"]["upgrade"]):
        assert action["remediation"] == {"retries": 0, "remediateLastFailure": False}
        assert action["strategy"] == {"name": "RemediateOnFailure"}, "and not what a controller takes by default"
        assert action["disableWait"] and action["disableWaitForJobs"]
    drift = release["spec"]["driftDetection"]
    assert drift["mode"] == "warn"
    assert drift["ignore"] == [{"paths": ["/spec/runPolicy/suspend"], "target": {"kind": "PyTorchJob"}}]
    assert not {"test", "rollback", "valuesFrom", "postRenderers"} & set(release["spec"])
    _, rounds = example()
    assert (rounds["spec"]["prune"], rounds["spec"]["deletionPolicy"]) == (False, "Orphan")


def test_the_same_lock_prints_the_same_bytes() -> None:
    assert manifests(read_lock(LOCK), "x") == caspi("flux", str(LOCK)).out
    text = caspi("flux", str(LOCK)).out
    assert text.count("\n---\n") == 1
    assert "0x" not in text and "!!" not in text


def test_without_a_chart_in_a_registry(tmp_path: Path) -> None:
    values = plain(read_lock(LOCK))
    values["chart"]["oci"] = None
    (tmp_path / "demo-r2.lock.yaml").write_text(lock_text(values))
    done = caspi("flux", str(tmp_path / "demo-r2.lock.yaml"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "chart.oci: none, and Flux takes charts from a registry; `make charts REGISTRY=oci://...`" in done.err
    assert caspi("flux", str(tmp_path / "none.lock.yaml")).code == 2


@pytest.fixture(scope="module")
def flux_itself(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Any], dict[str, Any]], dict[str, str]]:
    """Flux's own types and evaluator of expressions, from their Go modules: name -> what they say."""
    assert shutil.which("go"), "go not found: install Go 1.26 or later"
    program = tmp_path_factory.mktemp("flux") / "flux"
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    command = ["nice", "go", "build", "-o", program, "."]
    built = subprocess.run(command, cwd=HOUSE / "tests/flux", env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def ask(things: list[Any], jobs: dict[str, Any]) -> dict[str, str]:
        question = json.dumps({"things": things, "jobs": jobs})
        said = subprocess.run([program], input=question, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        return dict(line.split("\t", 1) for line in said.stdout.splitlines())

    return ask


Flux = Callable[[list[Any], dict[str, Any]], dict[str, str]]


@pytest.mark.flux
@pytest.mark.timeout(1500)
def test_flux_itself_takes_it(flux_itself: Flux) -> None:
    things = [*printed(), *example()]
    kinds = ["OCIRepository", "HelmRelease", "GitRepository", "Kustomization"]
    assert flux_itself(things, {}) == dict.fromkeys(kinds, "taken")
    things[1]["spec"]["install"]["retrys"] = 1
    assert flux_itself(things, {})["HelmRelease"] == 'error: json: unknown field "retrys"'


@pytest.mark.flux
@pytest.mark.timeout(1500)
def test_flux_itself_judges_recorded_jobs(flux_itself: Flux) -> None:
    """Healthy only when trained. A job that the operator has not looked at has no status: an error, and not healthy."""
    jobs = {path.stem: json.loads(path.read_text())["job"] for path in sorted((HOUSE / "tests/fleet").glob("*.json"))}
    jobs = {name: job for name, job in jobs.items() if job}
    said = flux_itself(example(), jobs)
    expected = {name: "InProgress" if job.get("status") else "error" for name, job in jobs.items()}
    expected |= {"succeeded": "Current", "diverged": "Failed"}
    assert {name: said[name].split(":")[0] for name in jobs} == expected
    assert len(expected) > 15
