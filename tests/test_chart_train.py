"""charts/caspi-train without Helm: schema, values.yaml and README say what the model says, and so do its ci sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.main import get_command

import caspi
import caspi.cli
from caspi.charts.documents import readme, resolved, schema_file, values_file
from caspi.charts.train import TrainValues
from caspi.charts.values import Values
from caspi.cli.options import app
from caspi.generate import FILES
from caspi.spec import ClusterSpec
from tests.charts.rendering import HERE, HOUSE, TRAIN, merged, value_sets

SETS = value_sets(TRAIN)
MINIMAL = yaml.safe_load(SETS[0].read_text("utf-8"))
BAD = yaml.safe_load((HERE / "caspi-train/bad-values.yaml").read_text("utf-8"))
KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "patternProperties", "items", "enum", "default"),
    *("description", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern"),
}


def read(path: Path) -> dict[str, Any]:
    """A value set without what is Helm's own."""
    values = yaml.safe_load(path.read_text("utf-8"))
    return {name: value for name, value in values.items() if name != "global"}


def nodes(schema: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema."""
    yield where, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{where}.{name}")
    for inner in [*schema.get("patternProperties", {}).values(), schema.get("items")]:
        if inner:
            yield from nodes(inner, f"{where}[]")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("charts/caspi-train/")])
def test_generated_files_are_what_the_model_makes(name: str) -> None:
    assert (HOUSE / name).read_text("utf-8") == FILES[name]()


def test_schema_is_strict_and_plain() -> None:
    """Unknown names are refused at every depth; nothing of which Helm would print more than one line an error."""
    for where, node in nodes(resolved(TrainValues)):
        assert set(node) <= KEYWORDS, where
        if "object" in node["type"]:
            assert "additionalProperties" in node, where
            assert "patternProperties" in node or "properties" in node, where
            assert node["additionalProperties"] is False, where


def test_every_value_is_explained() -> None:
    missing = [where for where, node in nodes(resolved(TrainValues)) if where[-2:] != "[]" and not node["description"]]
    assert not missing


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_defaults_of_values_yaml_are_those_of_the_model(path: Path) -> None:
    """What Helm makes of a set, with values.yaml below it, is what the model makes of the set alone."""
    values = read(path)
    defaults = yaml.safe_load((TRAIN / "values.yaml").read_text("utf-8"))
    assert TrainValues.model_validate(merged(defaults, values)) == TrainValues.model_validate(values)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_cluster_files_of_the_sets_load_and_agree(path: Path) -> None:
    values = TrainValues.model_validate(read(path))
    cluster = ClusterSpec.model_validate(yaml.safe_load(values.cluster))
    assert cluster.nodes == values.workers.count
    assert cluster.gpus_per_node == (values.workers.gpus.count if values.workers.gpus else 0)


@pytest.mark.parametrize("case", BAD, ids=lambda case: json.dumps(case["values"])[:60])
def test_model_refuses_what_the_schema_refuses(case: dict[str, Any]) -> None:
    """And secrets in plain sight, which JSON Schema can't say for Helm: those the chart's own check refuses."""
    values = merged(MINIMAL, case["values"])
    if case["lines"].startswith("- at") or "looks like a secret" in case["lines"]:
        with pytest.raises(ValidationError):
            TrainValues.model_validate(values)
    else:
        TrainValues.model_validate(values)


def test_bad_values_are_many() -> None:
    assert len(BAD) >= 30
    assert all(case["lines"].strip() for case in BAD)


def test_chart_version_follows_the_package() -> None:
    chart = yaml.safe_load((TRAIN / "Chart.yaml").read_text("utf-8"))
    assert chart["appVersion"] == caspi.__version__


def test_pods_call_commands_and_options_that_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {
        option
        for name in ("prepare", "fetch", "worker", "status")
        for parameter in commands[name].params
        for option in parameter.opts
    }
    used = {
        option
        for name in ("_pods.tpl", "_preparation.tpl", "pytorchjob.yaml", "tests/round.yaml")
        for option in re.findall(r"(?<![\w-])--[a-z-]+", (TRAIN / "templates" / name).read_text("utf-8"))
    }
    assert {"--round", "--digest", "--round-dir", "--assist", "--start", "--approve-audit"} <= used
    assert used <= known


def test_workers_get_the_variables_that_the_entrypoint_reads() -> None:
    """And no other of its own: a name that one side changes is found here."""
    given = set(re.findall(r"- name: (CASPI_\w+)", (TRAIN / "templates/_workers.tpl").read_text("utf-8")))
    read_there = {
        name
        for path in (HOUSE / "src/caspi/execution").glob("*.py")
        for name in re.findall(r'"(CASPI_[A-Z_]+)"', path.read_text("utf-8"))
    }
    assert given <= read_there
    assert given == {"CASPI_DEADLINE", "CASPI_STARTS", "CASPI_METRICS_PORT", "CASPI_FETCH_FAILURE"}


@pytest.mark.parametrize("path", sorted((HERE / "caspi-train/golden").iterdir()), ids=lambda path: path.stem)
def test_goldens_have_none_of_the_operators_traps(path: Path) -> None:
    """A panic (empty rdzvConf), torchrun's ValueError (standalone), a retrained round (TTL), fields that miscount."""
    text = path.read_text("utf-8")
    for word in ("rdzvConf", "standalone", "ttlSecondsAfterFinished", "nProcPerNode", "hostNetwork", "Master:"):
        assert word not in text
    assert "suspend: false" not in text, "with a queue it would start without quota"
    miscounted = re.findall(r"(?m)^[ +]?    (?:backoffLimit|activeDeadlineSeconds)", text)
    assert not miscounted, "of the PyTorchJob's runPolicy"


def test_only_the_gate_of_the_golden_has_a_token() -> None:
    made = list(yaml.safe_load_all((HERE / "caspi-train/golden" / f"{SETS[0].stem}.yaml").read_text("utf-8")))
    by_kind = {one["kind"]: one for one in made}
    job = by_kind["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert by_kind["Job"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert job["automountServiceAccountToken"] is False
    assert by_kind["Pod"]["spec"]["automountServiceAccountToken"] is False
    assert all(one["automountServiceAccountToken"] is False for one in made if one["kind"] == "ServiceAccount")


class Inner(Values):
    """An inner one."""

    need: int
    """Needed."""
    size: str = "1Gi"
    """How much."""


class Outer(Values):
    """Of this test."""

    inner: Inner
    """Must be there."""
    other: Inner | None = None
    """May be there."""
    preset: Inner = Inner(need=2, size="9Gi")
    """Is there."""
    some_list: list[Inner] = []
    """Many."""


def test_values_file_says_what_is_needed_and_takes_the_nearest_default() -> None:
    text = values_file(Outer, "A title")
    assert yaml.safe_load(text) == {
        "inner": {"size": "1Gi"},
        "other": None,
        "preset": {"need": 2, "size": "9Gi"},
        "someList": [],
    }
    assert "  # (required) Needed.\n  # need:\n" in text
    assert '# {need: (required), size: "1Gi"}\nother: null\n' in text
    assert '# Each: {need: (required), size: "1Gi"}\nsomeList: []\n' in text


def test_optional_values_are_one_schema_of_two_types() -> None:
    found = json.loads(schema_file(Outer, "A title"))
    assert found["properties"]["other"]["type"] == ["object", "null"]
    assert found["properties"]["other"]["required"] == ["need"]
    assert found["properties"]["other"]["description"] == "May be there."
    assert found["properties"]["global"]
    assert "$ref" not in json.dumps(found)
    assert "anyOf" not in json.dumps(found)


def test_readme_keeps_what_people_wrote_above_the_table() -> None:
    made = readme("# chart\n\nwords\n\n## Values\n\n| old |\n", Outer)
    assert made.startswith("# chart\n\nwords\n\n## Values\n\n| value |")
    assert "old" not in made
    assert '| `preset.size` | text | `"9Gi"` | How much. |' in made
    assert readme(made, Outer) == made
