"""The spec: what ships loads, the digest is the identity, the schema follows the code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from caspi.errors import UserError
from caspi.generate import main as generate
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round, parse
from caspi.spec.values import Money
from tests.test_bad_input import GOOD, changed

HOUSE = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((HOUSE / "rounds").glob("*.yaml")), ids=lambda path: path.stem)
def test_rounds_that_ship(path: Path) -> None:
    spec = load_round(path)
    assert spec.round == path.stem
    if spec.parent:
        assert (HOUSE / "rounds" / f"{spec.parent}.yaml").exists()


@pytest.mark.parametrize("path", sorted((HOUSE / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_clusters_that_ship(path: Path) -> None:
    load_cluster(path)


def test_the_round_survives_a_round_trip() -> None:
    """What is stored in a round directory is the same round: money, shares and defaults included."""
    spec = load_round(HOUSE / "rounds" / "hebrew-r2.yaml")
    again = RoundSpec.model_validate(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))
    assert again == spec
    assert again.digest == spec.digest
    assert spec.train.stop.cost == Money(amount=60, currency="USD")


def test_the_cluster_survives_a_round_trip() -> None:
    cluster = load_cluster(HOUSE / "clusters" / "2xa100-40gb.yaml")
    assert ClusterSpec.model_validate(cluster.model_dump(mode="json")) == cluster


def test_digest_is_identity() -> None:
    """Order, comments and written defaults change nothing; any value does."""
    one = parse(GOOD, RoundSpec, "good")
    assert parse(dict(reversed(GOOD.items())), RoundSpec, "good").digest == one.digest
    assert parse(changed(seed=42), RoundSpec, "good").digest == one.digest
    assert parse(changed(seed=43), RoundSpec, "good").digest != one.digest
    assert parse(changed(data__text="hebrew-2"), RoundSpec, "good").digest != one.digest


def test_yaml_numbers(tmp_path: Path) -> None:
    """5e-5 is a number to everybody but YAML 1.1."""
    path = tmp_path / "round.yaml"
    path.write_text(yaml.safe_dump(GOOD).replace("0.001", "5e-5"), encoding="utf-8")
    assert load_round(path).train.phases[0].rates == {"all": 5e-5}


def test_frozen() -> None:
    spec = parse(GOOD, RoundSpec, "good")
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]


def test_a_misspelt_field_is_named_deep_down() -> None:
    with pytest.raises(UserError, match=r"train\.evaluate\.every_step: no such field; did you mean every_steps\?"):
        parse(changed(train__evaluate={"every_step": 3}), RoundSpec, "good")


def test_generated_files_are_up_to_date() -> None:
    assert generate(check=True) == 0
