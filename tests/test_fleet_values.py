"""From a round and a cluster file to the values of the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.charts.train import Approval, TrainValues
from caspi.errors import UserError
from caspi.fleet.chart import chart_folder
from caspi.fleet.values import train_values, values_text, with_files
from caspi.spec import ClusterSpec, RoundSpec, load_round, parse
from tests.command import caspi
from tests.test_bad_input import GOOD

HOUSE = Path(__file__).parents[1]
IMAGE = "registry.example.com/asr/caspi-train@sha256:" + "0" * 64
KUBERNETES: dict[str, Any] = {"namespace": "asr", "images": {"train": IMAGE}}
A100 = {"gpus_per_node": 8, "gpu": {"product": "NVIDIA-A100-SXM4-40GB", "memory": "40GiB"}, "workers": 6}


def cluster(**values: Any) -> ClusterSpec:
    return parse({"data_root": "/rounds/data", "kubernetes": KUBERNETES, **values}, ClusterSpec, "cluster")


def good(**values: Any) -> RoundSpec:
    return parse({**GOOD, **values}, RoundSpec, "good")


def test_what_helm_gets_is_the_same_round() -> None:
    """The text in the values digests to the digest beside it, whatever YAML did to it on the way."""
    spec = load_round(HOUSE / "rounds/hebrew-r2.yaml")
    values = yaml.safe_load(values_text(train_values(spec, cluster())))
    again = parse(yaml.safe_load(values["round"]["file"]), RoundSpec, "again")
    assert values["round"]["digest"] == again.digest == spec.digest
    assert TrainValues.model_validate(values).round.name == spec.round


def test_the_namespace_and_the_context_stay_out_of_the_pods() -> None:
    text = train_values(good(), cluster(kubernetes={**KUBERNETES, "context": "my-laptop"}))["cluster"]
    assert "kubernetes" not in text
    assert parse(yaml.safe_load(text), ClusterSpec, "pod").data_root == "/rounds/data"


@pytest.mark.parametrize(
    ("machines", "workers"),
    [
        ({}, {"resources": {"cpu": "2", "memory": "5Gi"}}),
        (
            {"nodes": 3, "processes_per_node": 2, "memory": "3GiB", "kubernetes": {**KUBERNETES, "nodes_at_least": 2}},
            {"count": 3, "atLeast": 2, "processes": 2, "resources": {"cpu": "4", "memory": "7Gi"}},
        ),
        (
            A100,
            {
                "processes": 8,
                "gpus": {"count": 8, "product": "NVIDIA-A100-SXM4-40GB"},
                "resources": {"cpu": "56", "memory": "336Gi"},
                "shm": "16Gi",
            },
        ),
        (
            {"kubernetes": {**KUBERNETES, "pod": {"cpu": 3, "memory": "1536MiB", "shm": "64MiB"}}},
            {"resources": {"cpu": "3", "memory": "1536Mi"}, "shm": "64Mi"},
        ),
    ],
)
def test_what_workers_ask_for(machines: dict[str, Any], workers: dict[str, Any]) -> None:
    assert train_values(good(), cluster(**machines))["workers"] == workers


def test_secrets_queue_claim_and_approval() -> None:
    kubernetes = {
        **KUBERNETES,
        "queue": "gpus",
        "storage": {"claim": "disk"},
        "secrets": {"huggingface": "hub/token", "wandb": "wandb/api-key"},
        "images": {"train": IMAGE, "launcher": IMAGE.replace("train", "launcher")},
    }
    values = train_values(good(), cluster(kubernetes=kubernetes), Approval(by="Dana", reason="2%", audit="a" * 12))
    assert values["secrets"] == {
        "huggingface": {"name": "hub", "key": "token"},
        "wandb": {"name": "wandb", "key": "api-key"},
    }
    assert (values["queue"], values["storage"]) == ("gpus", {"claim": "disk"})
    assert values["launcher"]["repository"] == "registry.example.com/asr/caspi-launcher"
    assert values["preparation"] == {"approval": {"by": "Dana", "reason": "2%", "audit": "a" * 12}}


@pytest.mark.parametrize(
    ("spec", "machines", "line"),
    [
        ({}, {"kubernetes": {"namespace": "asr"}}, "kubernetes.images: missing"),
        ({"round": "2nd"}, {}, "begins with a letter"),
        ({}, {"data_root": None}, 'data.sources[0].path = "'),
        ({}, {"data_root": "/home/me/data"}, "mounted at /rounds"),
        ({}, {"data_root": "/rounds/../etc"}, "mounted at /rounds"),
    ],
)
def test_what_pods_can_not_do_is_said_before(spec: dict[str, Any], machines: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        train_values(good(**spec), cluster(**machines), where="clusters/x.yaml")
    assert line in str(error.value)
    assert str(error.value).startswith("clusters/x.yaml: ")


def test_more_values_lie_over_ours_as_in_helm() -> None:
    ours = train_values(good(), cluster(nodes=3))
    merged = with_files(ours, [("a", {"workers": {"spread": False}}), ("b", {"workers": {"atLeast": 2}, "grace": 60})])
    assert merged["workers"] == {**ours["workers"], "spread": False, "atLeast": 2}
    assert merged["grace"] == 60
    assert "grace" not in ours


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"round": {"name": "x"}}, "more.yaml: round: follows from the round file"),
        ({"wrokers": {}}, "more.yaml: wrokers: no such field; did you mean workers?"),
        ({"grace": "soon"}, "more.yaml: grace"),
    ],
)
def test_a_values_file_that_the_chart_would_refuse(more: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        with_files(train_values(good(), cluster()), [("more.yaml", more)])
    assert str(error.value).startswith(line)


def test_dry_run_prints_values_and_asks_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HELM", str(tmp_path / "none"))
    file, machines, more = tmp_path / "tidy.yaml", tmp_path / "cluster.yaml", tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    machines.write_text(yaml.safe_dump({"data_root": "/rounds/data", "kubernetes": KUBERNETES}), encoding="utf-8")
    more.write_text("labels: {team: asr}\n", encoding="utf-8")
    arguments = ("submit", str(file), "--cluster", str(machines), "--values", str(more))
    done = caspi(*arguments, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(done.out)["labels"] == {"team": "asr"}
    assert "    round: tidy\n" in done.out, "the round is a block that people can read"
    refused = caspi(*arguments)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "no such program; install Helm" in refused.err


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("--approve-by", "Dana"), "--approve-reason, --approve-audit: missing"),
        (("--approve-by", "D", "--approve-reason", "r", "--approve-audit", "new"), "--approve-audit new: no digest"),
    ],
)
def test_half_an_approval_is_none(tmp_path: Path, given: tuple[str, ...], line: str) -> None:
    file, machines = tmp_path / "tidy.yaml", tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    machines.write_text(yaml.safe_dump({"data_root": "/rounds/data", "kubernetes": KUBERNETES}), encoding="utf-8")
    done = caspi("submit", str(file), "--cluster", str(machines), "--dry-run", *given)
    assert done.code == 2
    assert done.err.startswith(line)


def test_the_chart_is_found() -> None:
    assert (chart_folder() / "values.schema.json").is_file()
    with pytest.raises(UserError, match="caspi-nothing is not in this installation"):
        chart_folder("caspi-nothing")
