"""The doctor names every bug that people met in the wild: each judge is shown the planted fault, and the cure."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from caspi.corpus.text import normalise
from caspi.doctor.check import Lines, Patient
from caspi.doctor.data import QWEN_LANGUAGES, judge_formats, judge_language, judge_normaliser
from caspi.doctor.model import judge_labels, judge_round_trip
from caspi.doctor.site import check_disk, check_gpus, check_pins, check_plan, check_secrets
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round, parse
from tests.command import caspi
from tests.test_bad_input import GOOD, changed

HOUSE = Path(__file__).parents[1]
HUB = {"name": "crowd", "hub": "owner/name"}


def blocked(lines: Lines) -> str:
    found = list(lines)
    return "\n".join(line for state, line in found if state == "blocked")


def patient(spec: RoundSpec, cluster: ClusterSpec | None = None, file: Path | None = None) -> Patient:
    return Patient(spec, cluster or ClusterSpec(), file, Path())


def _clip(kind: str) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.random.default_rng(0).normal(0, 0.1, 16000).astype("float32"), 16000, format=kind)
    return data.getvalue()


def test_dead_regex() -> None:
    def seed(text: str) -> str:
        text = re.sub(r"[\u0591-\u05C7]", "", text)
        text = re.sub(r"([.,!?;:])\\1+", r"\\1", text)
        return " ".join(text.split())

    lines = blocked(judge_normaliser("hebrew-seed", seed))
    assert "dead regex" in lines
    assert "glued words" in lines
    for name in ("plain-1", "hebrew-1", "hebrew-2", "english-upper-1"):
        assert not blocked(judge_normaliser(name, lambda text, name=name: normalise(name, text)))  # type: ignore[misc]


def test_lower_case_rules() -> None:
    """The seed's rule for text lowered it, against a vocabulary of capitals."""
    lines = blocked(judge_normaliser("english-upper-seed", lambda text: re.sub(r"[\,\.\?\!\"“”—]", "", text).lower()))
    assert "letters or apostrophes that an upper-case vocabulary lacks stay" in lines


def test_missing_codec() -> None:
    m4a = b"\0\0\0\x20ftypM4A \0\0\0\0" + b"\0" * 64
    assert "missing codec: no decoder for MPEG-4 m4a (1 of 2" in blocked(judge_formats("crowd", [m4a, _clip("FLAC")]))
    assert not blocked(judge_formats("crowd", [_clip(kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]))
    assert not blocked(judge_formats("crowd", [b"RIFFbroken", _clip("WAV")])), "a broken clip is the export's to drop"


def test_unsupported_language() -> None:
    assert "unsupported language" in blocked(judge_language("crowd", "Hebrew", ["hello there", "שלום"]))
    assert not blocked(judge_language("crowd", "Hebrew", ["שלום עולם", "hi"]))
    (state, line), *_ = judge_language("crowd", "Klingon", ["nuqneH"])
    assert (state, "not known here" in line) == ("note", True)


def test_languages_are_those_of_the_package() -> None:
    from qwen_asr.inference.utils import SUPPORTED_LANGUAGES

    assert frozenset(SUPPORTED_LANGUAGES) == QWEN_LANGUAGES


UPPER = {char: number for number, char in enumerate("|ABCDEFGHIJKLMNOPQRSTUVWXYZ'", start=4)}
UNKNOWN = 3


class UpperCase:
    """Spells with capitals only, as the vocabulary of wav2vec2-large-960h does."""

    unknown: int | None = UNKNOWN

    def encode(self, text: str) -> list[int]:
        return [UPPER.get(char, UNKNOWN) for char in text.replace(" ", "|")]

    def decode(self, ids: Sequence[int]) -> str:
        back = {number: char for char, number in UPPER.items()}
        return "".join(back.get(one, "<unk>") for one in ids).replace("|", " ")

    def written(self, text: str) -> str:
        return text


def test_lower_case_text() -> None:
    lines = blocked(judge_round_trip(UpperCase(), ["hello world"]))
    assert lines.startswith("lower-case text against an upper-case vocabulary")
    assert "d e h l o r w" in lines
    assert not blocked(judge_round_trip(UpperCase(), ["HELLO WORLD"]))


def test_left_pad_labels() -> None:
    assert "labels: row 1" in blocked(judge_labels(["row 1: 9 labelled tokens, and the target has 5"]))
    assert not blocked(judge_labels([]))


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 9,
        "AKIA" + "ABCD1234EFGH5678",
        "ghp_" + "x" * 36,
        "sk-" + "y" * 32,
        "WANDB_API_KEY: " + "0123456789abcdef0123456789abcdef01234567",
        "-----BEGIN RSA PRIVATE KEY-----",
        "password: hunter2hunter2",
    ],
)
def test_secrets(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(yaml.safe_dump(GOOD) + f"# {secret}\n", encoding="utf-8")
    spec = load_round(path)
    lines = blocked(check_secrets(patient(spec, file=path)))
    assert "take it out, revoke it" in lines
    assert secret not in lines, "a secret is not repeated in a log"


@pytest.mark.parametrize("path", sorted((HOUSE / "rounds").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_secret_seen_where_there_is_none(path: Path) -> None:
    assert not blocked(check_secrets(patient(load_round(path), file=path)))


def test_pins() -> None:
    moving = changed(data__sources=[{**HUB, "revision": "main"}])
    assert 'data.sources[0].revision = "main" moves' in blocked(check_pins(patient(parse(moving, RoundSpec, "x"))))
    pinned = changed(data__sources=[{**HUB, "revision": "0123456789" * 4}])
    assert not blocked(check_pins(patient(parse(pinned, RoundSpec, "x"))))


def test_plan_gpus_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_round(HOUSE / "rounds/hebrew-r1.yaml")
    cluster = load_cluster(HOUSE / "clusters/8xa100-40gb.yaml")
    (state, line), *_ = check_plan(patient(spec, cluster))
    assert (state, "sharded (FSDP)" in line) == ("ok", True)
    monkeypatch.setattr("shutil.which", lambda _: None)
    (state, line), *_ = check_gpus(patient(spec, cluster))
    assert (state, "not checked" in line) == ("note", True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    assert "keep fewer" in blocked(check_disk(patient(spec)))
    (state, line), *_ = check_disk(patient(spec, cluster))
    assert (state, "own disk is not looked at" in line) == ("note", True)


def _source(folder: Path, text: str) -> None:
    folder.mkdir()
    table = pa.table(
        {
            "audio": [{"bytes": _clip("WAV"), "path": f"{i}.wav"} for i in range(6)],
            "text": [text] * 6,
            "speaker": [f"s{i}" for i in range(6)],
        }
    )
    pq.write_table(table, folder / "train.parquet")


def test_the_whole_doctor(tmp_path: Path) -> None:
    """On real files, with the real tiny model: nothing blocks; with Latin text the language does, and the code is 2."""
    _source(tmp_path / "crowd", "שלום עולם")
    path = tmp_path / "tidy.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    done = caspi("doctor", str(path))
    assert done.code == 0, done.out + done.err
    assert "labels: in a real batch exactly the targets" in done.out
    assert "texts come back" in done.out
    assert done.out.endswith("nothing blocks this round\n")

    path.write_text(yaml.safe_dump(changed(model__language="Greek")), encoding="utf-8")
    bad = caspi("doctor", str(path), "--json")
    assert bad.code == 2
    states = {check["name"]: check["state"] for check in json.loads(bad.out) if check["state"] == "blocked"}
    assert states == {"sources": "blocked"}


@pytest.mark.parametrize("base", ["tiny", "tiny-parakeet"])
def test_the_whole_doctor_on_ctc(tmp_path: Path, base: str) -> None:
    """The labels are the text and nothing else; no language is asked for, and where there is one it is held against
    the text."""
    _source(tmp_path / "crowd", "Don’t stop!")
    path = tmp_path / "tidy.yaml"
    model = {"family": "ctc", "base": base}
    path.write_text(yaml.safe_dump(changed(model=model, data__text="english-upper-1")), encoding="utf-8")
    done = caspi("doctor", str(path))
    assert done.code == 0, done.out + done.err
    for line in ("labels: in a real batch exactly", "texts come back", "language    not said", "nothing blocks"):
        assert line in done.out, line

    path.write_text(yaml.safe_dump(changed(model={**model, "language": "Greek"})), encoding="utf-8")
    bad = caspi("doctor", str(path), "--json")
    assert {check["name"] for check in json.loads(bad.out) if check["state"] == "blocked"} == {"sources"}


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "tidy.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    done = caspi("doctor", str(path))
    assert done.code == 2
    assert 'data.sources[0].path = "crowd": no such file or folder' in done.out
