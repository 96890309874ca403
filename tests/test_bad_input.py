"""Bad specs, clusters and commands: one clear line for each problem, exit code 2, no traceback, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import caspi

GOOD: dict[str, Any] = {
    "round": "tidy",
    "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
    "data": {"sources": [{"name": "crowd", "path": "crowd"}]},
    "train": {"global_batch": 8, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-3}}]},
    "benchmark": {"sets": [{"name": "test", "path": "test"}]},
}
DROP = object()


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with `a__b__0__c=value` set, or left out where the value is DROP."""
    values = yaml.safe_load(yaml.safe_dump(GOOD))
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place = values
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        if value is DROP:
            del place[last]
        else:
            place[last] = value
    return values


HUB = {"name": "crowd", "hub": "owner/name"}
RATES = "train__phases__0__rates"

SPECS: list[tuple[dict[str, Any], str]] = [
    (changed(round=DROP), "round: missing; for example `round: hebrew-r1`"),
    (changed(round="Hebrew R1"), "lower-case letters, digits and dashes"),
    (changed(round="x" * 41), "at most 40"),
    (changed(round=7), "valid string"),
    (changed(parent="tidy"), '"tidy" is this round itself'),
    (changed(parnt="r1"), "parnt: no such field; did you mean parent?"),
    (changed(seed=-1), "seed = -1"),
    (changed(seed="forty-two"), "valid integer"),
    (changed(model=DROP), "model: missing"),
    (changed(model__family="whisper"), "whisper"),
    (changed(model__family=DROP), "model.family"),
    (changed(model__language=DROP), "model.language: missing"),
    (changed(model__language="he-IL"), 'write the language in English with a capital, for example "Hebrew"'),
    (changed(model__base="Qwen/Qwen3-ASR-1.7B"), "revision is missing"),
    (changed(model__revision="abc"), "revision only goes with a Hugging Face repository"),
    (changed(model__base=""), "model.base"),
    (changed(data__sources=[]), "data.sources"),
    (changed(data__sources="crowd"), "valid list"),
    (changed(data__sources=[HUB]), "pin the commit of owner/name"),
    (changed(data__sources=[{"name": "a"}]), "exactly one of path"),
    (changed(data__sources=[{"name": "a", "path": "x", "hub": "o/n", "revision": "1"}]), "exactly one of path"),
    (changed(data__sources=[{"name": "a", "path": "x", "revision": "1"}]), "revision only goes with hub"),
    (changed(data__sources=[{"name": "a", "hub": "nonsense", "revision": "1"}]), "owner/name"),
    (changed(data__sources=[{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]), "a stands twice"),
    (changed(data__sources__0__weight=0), "weight"),
    (changed(data__sources__0__columns={"sound": "x"}), "columns"),
    (changed(data__text="hebrew-99"), "one of"),
    (changed(data__keep={"seconds": [30, 0.5]}), "[at least, at most]"),
    (changed(data__keep={"seconds": [1]}), "data.keep.seconds"),
    (changed(data__keep={"seconds": [0.5, 9000]}), "does not fit; at most"),
    (changed(data__split={"eval": "5 percent"}), 'write a share as "10%"'),
    (changed(data__split={"eval": 0}), "above 0%"),
    (changed(data__split={"eval": 0.9}), "at most at 50%"),
    (changed(data__split={"by": []}), "data.split.by"),
    (changed(data__split={"by": ["colour"]}), "one of"),
    (changed(data__materialise="mp3"), "materialise"),
    (changed(data__expected={"train": 0, "eval": 1}), "data.expected.train"),
    (changed(audit={"sample": {"share": "300%"}}), "audit.sample.share"),
    (changed(audit={"proceed": {"low_quality": 0.2, "any_domain": 0.2}}), "CAUTION is the wider band"),
    (changed(audit={"leave_out": ["ugly"]}), "one of"),
    (changed(train__global_batch=0), "train.global_batch = 0"),
    (changed(train__global_batch=1.5), "integer"),
    (changed(train__phases=[]), "train.phases"),
    (changed(**{f"{RATES}": {}}), "rates"),
    (changed(**{f"{RATES}": {"all": 0.0}}), "greater than 0"),
    (changed(**{f"{RATES}": {"all": 5}}), "less than 1"),
    (changed(**{f"{RATES}": {"all": ".nan"}}), "rates.all"),
    (changed(**{f"{RATES}": {"audio_topp:8": 1e-4}}), "it has projector, llm_top:N, lm_head, audio_top:N, all"),
    (changed(**{f"{RATES}": {"llm_top:0": 1e-4}}), "no group of qwen3-asr"),
    (changed(**{f"{RATES}": {"all": 1e-4, "projector": 1e-4}}), '"all" already holds every parameter'),
    (changed(**{f"{RATES}": {"llm_top:1": 1e-4, "llm_top:2": 1e-4}}), "keep the larger N"),
    (changed(**{f"{RATES}": {"llm_top:40": 1e-4}}), "llm_top:40"),
    (changed(train__phases=[GOOD["train"]["phases"][0]] * 2), "phase names must differ"),
    (changed(train__phases__0__epochs=0), "epochs = 0"),
    (changed(train__schedule={"shape": "zigzag"}), "one of"),
    (changed(train__precision="fp8"), "one of"),
    (changed(train__augment={"speed": [0.1]}), "between 0.5 and 2.0"),
    (changed(train__augment={"specaugment": {"freq": [-1, 3]}}), "[how many masks, widest mask]"),
    (changed(train__stop={"cost": "60"}), 'write it as "60 USD"'),
    (changed(train__stop={"cost": "sixty USD"}), 'write it as "60 USD"'),
    (changed(benchmark__sets=[]), "benchmark.sets"),
    (changed(benchmark__sets=[{"name": "crowd", "path": "x"}]), "also the name of a source"),
    (changed(benchmark__profiles=["loose"]), "one of"),
    (changed(benchmark__target={"at_most": -1}), "benchmark.target.at_most"),
]

CTC = {"family": "ctc", "base": "tiny"}
LORA = {f"{RATES}": {"lora": 1e-3}}

SPECS += [
    (changed(model={**CTC, "base": ""}), "model.base"),
    (changed(model={**CTC, "language": "english"}), "write the language in English with a capital, for example"),
    (changed(model={**CTC, "context": "a talk"}), "model.context: no such field; it has family, base, revision"),
    (changed(model={**CTC, "vocabulary": "mine"}), "unknown; it is one of 'base', 'corpus'"),
    (changed(model={**CTC, "vocabulry": "base"}), "model.vocabulry: no such field; did you mean vocabulary?"),
    (changed(model={**CTC, "base": "facebook/wav2vec2-large-960h"}), "pin the commit of facebook/wav2vec2-large-960h"),
    (changed(model={**CTC, "revision": "abc"}), "revision only goes with a Hugging Face repository, and tiny is none"),
    (changed(model={**GOOD["model"], "base": "tiny-parakeet"}), "that is of the family ctc; qwen3-asr has tiny"),
    (changed(model=CTC, **{f"{RATES}": {"projector": 1e-4}}), "it has front, encoder, audio_top:N, lm_head, all"),
    (changed(model=CTC, **{f"{RATES}": {"audio_top:0": 1e-4}}), '"audio_top:0" is no group of ctc'),
    (changed(model=CTC, **{f"{RATES}": {"audio_top:9": 1e-4}}), '"audio_top:9": the encoder has 2 layers'),
    (changed(model=CTC, **{f"{RATES}": {"encoder": 1e-4, "audio_top:1": 1e-4}}), '"encoder" already holds its layers'),
    (changed(model=CTC, **{f"{RATES}": {"all": 1e-4, "front": 1e-4}}), '"all" already holds every parameter'),
    (changed(model=CTC, train__lora={"targets": ["gate_proj"]}, **LORA), "gate_proj can't be adapted here; it has"),
    (changed(**LORA), 'the group "lora" needs train.lora, for example lora: {rank: 16, alpha: 32}'),
    (changed(train__lora={"rank": 8}), 'no phase moves it; name the group "lora" in phases[].rates'),
    (changed(train__lora={"rank": 0}, **LORA), "train.lora.rank = 0"),
    (changed(train__lora={"rank": 8, "targets": ["lm_head"]}, **LORA), "train.lora.targets[0]"),
    (changed(train__lora={}, **{f"{RATES}": {"lora": 1e-3, "lm_head": 1e-3}}), "say lora.beside_groups: true"),
    (changed(train__average=3), "average = 3: so many checkpoints must be kept, and keep.best is"),
    (changed(train__average=1), "train.average = 1"),
    (changed(train__average=2, train__keep={"best": 2}, train__final="last"), "it does not go with final: last"),
    (changed(train__augment={"noise": {"snr": [30, 15]}}), "write [loudest, quietest] in dB between -10 and 80"),
    (changed(train__augment={"noise": {"snr": [15]}}), "train.augment.noise.snr"),
    (changed(train__augment={"noise": {"share": "150%"}}), "train.augment.noise.share"),
    (changed(train__stop={"spike": {"times": 1}}), "train.stop.spike.times = 1"),
    (changed(train__stop={"spike": {"steps": 5}}), "train.stop.spike.steps = 5"),
    (changed(data__subset="0%"), "nothing would be left: write a share above 0%"),
    (changed(data__subset="120%"), "data.subset"),
    (changed(data__subset="a tenth"), 'write a share as "10%"'),
    (changed(data__text="english-lower-1"), "'english-upper-1'"),
]

TEXTS: list[tuple[bytes, str]] = [
    (b"", "is empty; `caspi init NAME` writes a first round"),
    (b"round: [1, 2", "not valid YAML"),
    (b"- a\n- b\n", "expected a mapping of fields, got a list"),
    (b"just words", "expected a mapping of fields, got text"),
    (b"round: a\nround: b\n", '"round" stands twice'),
    (b"1: a\n", "is not text: quote it"),
    (b"round: \xff\xfe\n", "not UTF-8 text"),
    (b"a: &x [*x]\n", "not valid"),
    (b"round: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    (b"\ttabs: no\n", "not valid YAML"),
    (b"[" * 3000, "not valid YAML"),
]

CLUSTERS: list[tuple[str, str]] = [
    ("nodes: 0", "nodes = 0"),
    ("gpus_per_node: 2", "gpu is missing"),
    ("gpu: {product: A100, memory: 40GiB}", "gpus_per_node is 0"),
    ("gpus_per_node: 1\ngpu: {product: A100, memory: forty}", 'write a size as "40GiB"'),
    ("gpus_per_node: 1\ngpu: {product: A100, memory: 40GiB, price: 3 dollars}", 'write it as "1.60 USD/h"'),
    ("gpus_per_node: 1\ngpu: {product: GT, memory: 1MB}", "does not fit"),
    ("kubernetes: {namespace: My_Space}", "lower-case letters"),
    ("nods: 2", "did you mean nodes?"),
]

COMMANDS: list[tuple[list[str], str]] = [
    (["plan", "nowhere.yaml"], "nowhere.yaml: no such file; `caspi init NAME` writes a first round"),
    (["plan", "nowhere/"], "no such file or round directory"),
    (["plan", "never-ran", "--runs", "{tmp}"], 'no round "never-ran"'),
    (["plan", "{tmp}"], "it has no round.yaml"),
    (["plan"], "missing argument 'ROUND'"),
    (["plan", "{good}", "--cluster", "missing.yaml"], "missing.yaml: no such file"),
    (["plan", "{good}", "--fast"], "no such option"),
    (["fly"], "no such command"),
    (["stage", "bake", "--round-dir", "{tmp}"], 'no stage "bake"; stages are export, audit'),
    (["stage", "export", "--round-dir", "{tmp}/none"], "it has no round.yaml"),
    (["approve", "{good}", "--by", "me"], "missing option"),
    (["serve", "{tmp}/none"], "{tmp}/none"),
    (["serve", "{tmp}", "--port", "99999"], "less than or equal to 65535"),
    (["init", "Bad Name", "--folder", "{tmp}"], "lower-case letters"),
    (["init", "ok", "--data", "a: b", "--folder", "{tmp}"], "give a folder, or a repository"),
    (["init", "ok", "--language", "he", "--folder", "{tmp}"], "in English with a capital"),
    (["status", "--runs", "{tmp}/none"], "no rounds under"),
    (["report", "never-ran", "--runs", "{tmp}"], "run it first"),
]  # fmt: skip


def check(result_code: int, err: str, expected: str) -> None:
    assert result_code == 2, err
    assert expected in err
    assert "Traceback" not in err
    assert all(len(line) < 300 for line in err.splitlines()), err


@pytest.mark.parametrize(("values", "expected"), SPECS, ids=[expected[:40] for _, expected in SPECS])
def test_specs(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    done = caspi("plan", str(path), "--runs", str(tmp_path / "runs"))
    check(done.code, done.err, expected)
    assert len(done.err.splitlines()) == 1, done.err
    assert sorted(tmp_path.iterdir()) == [path], "nothing may be written"


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=[expected[:40] for _, expected in TEXTS])
def test_texts(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "round.yaml"
    path.write_bytes(text)
    done = caspi("run", str(path), "--runs", str(tmp_path / "runs"))
    check(done.code, done.err, expected)
    assert sorted(tmp_path.iterdir()) == [path], "nothing may be written"


@pytest.mark.parametrize(("text", "expected"), CLUSTERS, ids=[expected[:40] for _, expected in CLUSTERS])
def test_clusters(tmp_path: Path, text: str, expected: str) -> None:
    good, cluster = tmp_path / "round.yaml", tmp_path / "cluster.yaml"
    good.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    cluster.write_text(text, encoding="utf-8")
    done = caspi("plan", str(good), "--cluster", str(cluster))
    check(done.code, done.err, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"), COMMANDS, ids=[" ".join(arguments)[:40] for arguments, _ in COMMANDS]
)
def test_commands(tmp_path: Path, arguments: list[str], expected: str) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    names = {"tmp": str(tmp_path), "good": str(good)}
    done = caspi(*[argument.format(**names) for argument in arguments])
    check(done.code, done.err, expected.format(**names))
    assert sorted(tmp_path.iterdir()) == [good], "nothing may be written"


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(
        yaml.safe_dump(changed(round="No", seed=-1, train__global_batch=0, benchmark__sets=[])), encoding="utf-8"
    )
    done = caspi("plan", str(path))
    assert done.code == 2
    assert done.err.splitlines()[0] == f"{path}: 4 problems"
    assert len(done.err.splitlines()) == 5


def test_the_good_one_is_good(tmp_path: Path) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    assert caspi("plan", str(path)).code == 0
