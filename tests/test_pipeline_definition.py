"""The compiled pipeline: the same bytes anywhere, strictly parsed, and nothing in it that should not be."""

from __future__ import annotations

import ast
import copy
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from caspi.errors import UserError
from caspi.files import file_digest
from caspi.pipeline import package
from caspi.pipeline.package import pipeline_digest, pipeline_file, version_name

HOUSE = Path(__file__).parents[1]
COMMITTED = HOUSE / "pipelines" / "caspi-round.yaml"
STEPS = {"export", "audit", "gate", "train", "benchmark", "compare", "report", "free"}
REFERENCE = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
Plain = dict[str, Any]


def compiled(path: Path, *options: str, seed: str = "0", folder: Path = HOUSE) -> str:
    """What the program writes, with another order of hashes and in another folder."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(HOUSE)}
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.caspi_round", "-o", str(path), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return re.sub(r"(?m)^sdkVersion: kfp-[\d.]+$", "sdkVersion: kfp", path.read_text(encoding="utf-8"))


def documents() -> list[Plain]:
    return list(yaml.safe_load_all(COMMITTED.read_text(encoding="utf-8")))


def dags(spec: Plain) -> Iterator[tuple[str, Plain]]:
    """Name and component of everything that has tasks: the whole, the exit handler's body, the condition's."""
    yield "root", spec["root"]
    yield from ((name, one) for name, one in spec["components"].items() if "dag" in one)


def tasks(spec: Plain) -> Iterator[tuple[Plain, str, Plain]]:
    """Where it is, name, and task of every step."""
    for _, dag in dags(spec):
        for name, task in dag["dag"]["tasks"].items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield dag, name, task


def references(value: object) -> Iterator[str]:
    """Every input of the surrounding graph that is asked for, anywhere in a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "componentInputParameter":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def problems(found: list[Plain]) -> list[str]:
    """Everything that is wrong with a compiled pipeline, in words."""
    spec, platform = found
    executors, settings = (
        spec["deploymentSpec"]["executors"],
        platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"],
    )
    wrong: list[str] = []
    for kind, value in (
        (PipelineSpec, spec),
        (PlatformSpec, platform),
        *((KubernetesExecutorConfig, one) for one in settings.values()),
    ):
        try:
            json_format.ParseDict(value, kind(), ignore_unknown_fields=False)
        except json_format.ParseError as error:
            wrong.append(f"no {kind.__name__}: {error}")
    if {name for _, name, _ in tasks(spec)} != STEPS:
        wrong.append("other steps")
    for label, executor in executors.items():
        container, text = executor["container"], str(executor)
        image = REFERENCE.fullmatch(container["image"])
        if image is None or image[1].removeprefix("pipelinechannel--") not in ("image", "launcher", "trainer"):
            wrong.append(f"{label}: image {container['image']}")
        if re.search(r"\bpip\d?\b|packages_to_install|apt-get|curl|https?://", text):
            wrong.append(f"{label}: installs something")
        if container.get("env"):
            wrong.append(f"{label}: has values in its environment")
        wrong += [f"{label}: {problem}" for problem in placement(settings.get(label, {}))]
    conditions = [
        task["triggerPolicy"]["condition"]
        for _, dag in dags(spec)
        for task in dag["dag"]["tasks"].values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    if conditions != ["inputs.parameter_values['pipelinechannel--gate-Output'] == 'pass'"]:
        wrong.append(f"conditions {conditions}")
    for dag, name, task in tasks(spec):
        if task.get("cachingOptions", {}).get("enableCache"):
            wrong.append(f"{name}: cached")
        retry = task.get("retryPolicy", {})
        if not (retry.get("maxRetryCount", 0) > 0 and retry.get("backoffDuration") and retry["backoffFactor"] > 1):
            wrong.append(f"{name}: retries {retry}")
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        defined = dag["inputDefinitions"]["parameters"]
        wrong += [f"{name}: {one} is no input here" for one in references(settings.get(label)) if one not in defined]
        given = task["inputs"]["parameters"]
        asked = set(REFERENCE.findall(str(executors[label]))) | set(REFERENCE.findall(str(given)))
        wrong += [f"{name}: {one} is not given" for one in sorted(asked - given.keys())]
    for where, dag in dags(spec):
        defined = dag["inputDefinitions"]["parameters"]
        for name, task in dag["dag"]["tasks"].items():
            wrong += [f"{where} {name}: {one} is no input" for one in references(task["inputs"]) if one not in defined]
            called = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {}).get("parameters", {})
            needed = {one for one, about in called.items() if not about.get("isOptional")}
            wrong += [
                f"{where} {name}: {one} is not given" for one in sorted(needed - task["inputs"]["parameters"].keys())
            ]
    return wrong


def placement(settings: Plain) -> Iterator[str]:
    """What is wrong with where and how a step runs."""
    if int(settings.get("activeDeadlineSeconds", 0)) <= 0:
        yield "no timeout"
    mounts = settings.get("pvcMount", [])
    if [(one["mountPath"], "pvcNameParameter" in one) for one in mounts] != [("/rounds", True)]:
        yield f"mounts {mounts}"
    for secret in settings.get("secretAsEnv", [{}]):
        if not secret.get("optional") or "secretNameParameter" not in secret or secret.get("secretName"):
            yield f"secret {secret}"
    if settings.get("secretAsVolume") or settings.get("configMapAsEnv"):
        yield "reads more than it should"
    for name in ("nodeSelector", "tolerations", "imagePullSecret"):
        if "componentInputParameter" not in str(settings.get(name)):
            yield f"{name} is no parameter"


def test_the_committed_pipeline_is_sound() -> None:
    assert problems(documents()) == []


def test_shared_memory_is_where_data_workers_are() -> None:
    executors = documents()[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    shared = {name: one["emptyDirMounts"] for name, one in executors.items() if "emptyDirMounts" in one}
    mount = {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}
    assert shared == {"exec-train": [mount], "exec-benchmark": [mount]}


def test_only_the_benchmark_asks_for_gpus_and_a_run_says_how_many() -> None:
    executors = documents()[0]["deploymentSpec"]["executors"]
    asking = {name for name, one in executors.items() if "accelerator" in one["container"].get("resources", {})}
    assert asking == {"exec-benchmark"}
    gpus = executors["exec-benchmark"]["container"]["resources"]["accelerator"]
    assert gpus == {
        "resourceCount": "{{$.inputs.parameters['pipelinechannel--benchmark_gpus']}}",
        "resourceType": "{{$.inputs.parameters['pipelinechannel--benchmark_gpu']}}",
    }


def test_artifacts_have_the_types_that_the_ui_shows() -> None:
    found = {
        f"{name.removeprefix('comp-')}.{artifact}": about["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, component in documents()[0]["components"].items()
        for artifact, about in component.get("outputDefinitions", {}).get("artifacts", {}).items()
    }
    assert found == {
        "export.dataset": "Dataset",
        "audit.metrics": "Metrics",
        "audit.findings": "Markdown",
        "gate.decided": "Markdown",
        "train.model": "Model",
        "train.metrics": "Metrics",
        "benchmark.metrics": "Metrics",
        "compare.metrics": "Metrics",
        "compare.verdict": "Markdown",
        "report.page": "HTML",
    }


def test_parameters_and_their_defaults() -> None:
    """What `caspi submit --to kfp` and people rely on: a name that changes breaks runs that are written down."""
    parameters = documents()[0]["root"]["inputDefinitions"]["parameters"]
    needed = {name for name, about in parameters.items() if not about.get("isOptional")}
    assert needed == {"round", "cluster", "digest", "image", "launcher", "trainer"}
    assert {name: about["defaultValue"] for name, about in parameters.items() if name not in needed} == {
        "train_by": "helm",
        "runs": "/rounds",
        "claim": "rounds",
        "approve_by": "",
        "approve_reason": "",
        "approve_audit": "",
        "huggingface_secret": "huggingface",
        "pull_secret": "caspi-registry",
        "node_selector": {},
        "tolerations": [],
        "benchmark_gpu": "nvidia.com/gpu",
        "benchmark_gpus": "0",
    }


def test_a_step_only_calls_the_library() -> None:
    for label, executor in documents()[0]["deploymentSpec"]["executors"].items():
        source = executor["container"]["command"][-1]
        (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        assert len(function.body) <= 5, label
        imported = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imported == ["from caspi.pipeline import steps"], label


def _executor(found: list[Plain], step: str) -> Plain:
    container: Plain = found[0]["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return container


def _settings(found: list[Plain], step: str) -> Plain:
    settings: Plain = found[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    return settings


def _body(found: list[Plain], name: str = "comp-condition-2") -> Plain:
    component: Plain = found[0]["components"][name]
    return component


def _another_condition(found: list[Plain]) -> None:
    _body(found)["dag"]["tasks"]["report"]["triggerPolicy"] = {"condition": "true"}


FAULTS: dict[str, Callable[[list[Plain]], object]] = {
    "no PipelineSpec": lambda found: found[0].update(color="red"),
    "no PlatformSpec": lambda found: found[1].update(color="red"),
    "no KubernetesExecutorConfig": lambda found: _settings(found, "train").update(gpus=1),
    "other steps": lambda found: _body(found)["dag"]["tasks"].pop("compare"),
    "exec-train: image": lambda found: _executor(found, "train").update(image="caspi-train:latest"),
    "exec-gate: installs": lambda found: _executor(found, "gate")["command"].insert(0, "python3 -m pip install kfp"),
    "exec-audit: has values": lambda found: _executor(found, "audit").update(env=[{"name": "HF_TOKEN", "value": "x"}]),
    "exec-train: no timeout": lambda found: _settings(found, "train").pop("activeDeadlineSeconds"),
    "exec-train: mounts": lambda found: _settings(found, "train").pop("pvcMount"),
    "exec-export: secret": lambda found: _settings(found, "export")["secretAsEnv"][0].pop("optional"),
    "exec-export: tolerations": lambda found: _settings(found, "export").pop("tolerations"),
    "conditions": _another_condition,
    "train: cached": lambda found: _body(found)["dag"]["tasks"]["train"]["cachingOptions"].update(enableCache=True),
    "train: retries": lambda found: _body(found)["dag"]["tasks"]["train"].pop("retryPolicy"),
    "pipelinechannel--claim is no input here": lambda found: _body(found)["inputDefinitions"]["parameters"].pop(
        "pipelinechannel--claim"
    ),
    "benchmark: pipelinechannel--benchmark_gpus is no input": lambda found: _body(found)["inputDefinitions"][
        "parameters"
    ].pop("pipelinechannel--benchmark_gpus"),
    "train: audit is not given": lambda found: _body(found)["dag"]["tasks"]["train"]["inputs"]["parameters"].pop(
        "audit"
    ),
}


@pytest.mark.parametrize("sign", FAULTS)
def test_planted_faults_are_found(sign: str) -> None:
    found = copy.deepcopy(documents())
    FAULTS[sign](found)
    assert any(sign in problem for problem in problems(found)), problems(found)


def test_it_compiles_to_the_same_bytes_anywhere(tmp_path: Path) -> None:
    """A fresh compile is what is committed, whatever the order of hashes and the folder."""
    here = compiled(tmp_path / "a.yaml", seed="1")
    there = compiled(tmp_path / "b.yaml", seed="2024", folder=tmp_path)
    assert here == there
    assert here == re.sub(r"(?m)^sdkVersion: kfp-[\d.]+$", "sdkVersion: kfp", COMMITTED.read_text(encoding="utf-8"))


def test_what_kubeflow_takes_at_compile_time_are_options(tmp_path: Path) -> None:
    options = ["--shm", "1Gi", "--retries", "5", "--retry-after", "7", "--timeout", "train=2"]
    options += ["--resources", "train=8,64Gi"]
    text = compiled(tmp_path / "other.yaml", *options)
    found = list(yaml.safe_load_all(text.replace("sdkVersion: kfp", "sdkVersion: kfp-2.17.0")))
    assert problems(found) == []
    assert _settings(found, "train")["activeDeadlineSeconds"] == "7200"
    assert _settings(found, "audit")["activeDeadlineSeconds"] == "86400"
    assert _settings(found, "benchmark")["emptyDirMounts"][0]["sizeLimit"] == "1Gi"
    assert {task["retryPolicy"]["maxRetryCount"] for _, _, task in tasks(found[0])} == {5}
    assert {task["retryPolicy"]["backoffDuration"] for _, _, task in tasks(found[0])} == {"7s"}
    assert _executor(found, "train")["resources"]["resourceMemoryRequest"] == "64Gi"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--timeout", "training=2"], "--timeout training=2: steps are export, audit"),
        (["--timeout", "train=long"], "--timeout: hours, for example train=48"),
        (["--resources", "train=8"], "--resources train=8: CPU and memory, for example train=2,8Gi"),
    ],
)
def test_options_that_are_wrong_are_named(options: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.caspi_round import main

    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_the_package_is_found_and_named_by_its_digest() -> None:
    assert pipeline_file() == COMMITTED
    assert pipeline_digest() == file_digest(COMMITTED)
    assert version_name() == f"caspi-round-{file_digest(COMMITTED)[:12]}"


def test_an_installed_wheel_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a checkout it is where pyproject.toml has the build put it."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    packages = tmp_path / "lib" / "site-packages"
    monkeypatch.setattr(package, "PACKAGE", packages / "caspi")
    with pytest.raises(UserError, match="not in this installation"):
        pipeline_file()
    installed = packages / included["pipelines/caspi-round.yaml"]
    installed.parent.mkdir(parents=True)
    installed.write_bytes(COMMITTED.read_bytes())
    assert pipeline_file() == installed
    assert pipeline_digest() == file_digest(COMMITTED)
