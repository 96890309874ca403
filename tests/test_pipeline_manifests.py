"""The pipeline as Kubernetes objects: what kfp itself makes of the compiled file, named by the commit, and stable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.compiler.pipeline_spec_builder import write_pipeline_spec_to_file
from kfp.pipeline_spec import pipeline_spec_pb2
from pipelines.manifests import PACKAGE, main, manifests

HOUSE = Path(__file__).parents[1]
SHA = "0123456789abcdef0123456789abcdef01234567"
VERSION = "caspi-round-0123456789ab"


def made() -> list[dict[str, Any]]:
    return manifests(PACKAGE.read_text("utf-8"), SHA, "kubeflow")


def test_it_is_what_kfp_writes(tmp_path: Path) -> None:
    """Byte for byte, from the same compiled pipeline through kfp's own writer of manifests."""
    spec, platform = yaml.safe_load_all(PACKAGE.read_text("utf-8"))
    options = KubernetesManifestOptions(
        pipeline_name="caspi-round",
        pipeline_version_name=VERSION,
        pipeline_version_display_name=VERSION,
        namespace="kubeflow",
        include_pipeline_manifest=True,
    )
    write_pipeline_spec_to_file(
        pipeline_spec=json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()),
        pipeline_description=spec["pipelineInfo"]["description"],
        platform_spec=json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()),
        package_path=str(tmp_path / "kfp.yaml"),
        kubernetes_manifest_options=options,
        kubernetes_manifest_format=True,
    )
    assert main(["--revision", SHA, "-o", str(tmp_path / "ours.yaml")]) == 0
    theirs = list(yaml.safe_load_all((tmp_path / "kfp.yaml").read_text("utf-8")))
    assert list(yaml.safe_load_all((tmp_path / "ours.yaml").read_text("utf-8"))) == theirs == made()


def test_it_parses_strictly() -> None:
    """Unknown fields are errors; a planted one is."""
    _, version = made()
    spec = version["spec"]
    assert (version["metadata"]["name"], spec["pipelineName"]) == (VERSION, "caspi-round")
    json_format.ParseDict(spec["pipelineSpec"], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    json_format.ParseDict(spec["platformSpec"], pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    assert set(spec) == {"description", "displayName", "pipelineName", "pipelineSpec", "platformSpec"}
    spec["pipelineSpec"]["root"]["planted"] = 1
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(spec["pipelineSpec"], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)


def test_the_same_commit_is_the_same_bytes() -> None:
    outputs = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.manifests", "--revision", SHA],
            cwd=HOUSE,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("revision", ["main", SHA[:12], SHA.upper(), ""])
def test_a_version_is_named_by_a_full_commit(revision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--revision", revision]) == 2
    assert "write a full commit" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "a: 1\n---\nb: 2\n", "pipelineInfo: {name: x}\n---\n{}\n---\n{}\n"])
def test_only_a_compiled_pipeline(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert main(["--revision", SHA, "--package", str(tmp_path / "p.yaml")]) == 2
    assert "not a compiled pipeline" in capsys.readouterr().err
