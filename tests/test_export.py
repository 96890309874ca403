"""The export stage: ledger, manifests, layouts, materialised audio, and kills at every point."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import caspi.stages.export as export
from caspi.corpus.audio import AudioReader
from caspi.corpus.collection import Collection
from caspi.corpus.manifest import read_manifest
from caspi.corpus.roots import roots
from caspi.errors import StageFailed, UserError
from caspi.files import file_digest, read_json, read_json_lines
from caspi.records.round_dir import RoundDir
from caspi.stages.export import STAGE
from caspi.stages.stage import perform
from tests.standins.corpora import encoded, make_round, rows, tone, write_arrow, write_jsonl, write_parquet, write_tsv

WRITERS = {
    "parquet": lambda folder, made: write_parquet(folder / "data.parquet", made),
    "arrow": lambda folder, made: write_arrow(folder / "data.arrow", made),
    "jsonl": write_jsonl,
    "tsv": write_tsv,
}


def exported(round_dir: RoundDir) -> dict[str, Any]:
    return perform(STAGE, round_dir)[0].results


def files_of(round_dir: RoundDir) -> dict[str, str]:
    folder = round_dir.folder("export")
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "record.json"
    }


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_every_layout_gives_the_same_utterances(tmp_path: Path, layout: str) -> None:
    made = rows(40)
    WRITERS[layout](tmp_path / "crowd", made)
    round_dir = make_round(tmp_path)
    results = exported(round_dir)
    assert (results["train"], results["eval"]) == (32, 8)
    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, round_dir.folder("export")))
    both = read_manifest(round_dir.folder("export") / "train.jsonl") + read_manifest(
        round_dir.folder("export") / "eval.jsonl"
    )
    by_text = {utterance.text: utterance for utterance in both}
    for row in made:
        utterance = by_text[row["text"]]
        assert reader.encoded(utterance.audio)[0] == row["audio"]["bytes"]
        assert utterance.seconds == 1.0
        assert (utterance.source, utterance.domain) == ("crowd", "general")
        assert utterance.speaker == (row["speaker"] if layout != "jsonl" else None)
    assert len({utterance.id for utterance in both}) == 40


def test_the_ledger_names_every_loss(tmp_path: Path) -> None:
    made = rows(40)
    faults = [
        ("not decodable", {"audio": {"bytes": b"no audio at all", "path": None}}),
        ("format not supported: MPEG-4 m4a", {"audio": {"bytes": b"\0\0\0\x20ftypM4A " + b"\0" * 99, "path": None}}),
        ("cut short", {"audio": {"bytes": encoded(tone(2.0))[:-9999], "path": None}}),
        ("no samples", {"audio": {"bytes": b"", "path": None}}),
        ("audio file missing", {"audio": {"bytes": None, "path": None}}),
        ("audio file missing", {"audio": {"bytes": None, "path": "gone.wav"}}),
        ("audio file missing", {"audio": None}),
        ("too short", {"audio": {"bytes": encoded(tone(0.3)), "path": None}}),
        ("too long", {"audio": {"bytes": encoded(tone(31.0, 8000), rate=8000), "path": None}}),
        ("empty text", {"text": ""}),
        ("empty text", {"text": None}),
        ("empty text", {"text": " <|0.00|>\u05b0 "}),
        ("too many characters a second", {"text": "word " * 20}),
        ("too few characters a second", {"audio": {"bytes": encoded(tone(9.0)), "path": None}, "text": "short"}),
    ]
    write_parquet(tmp_path / "crowd" / "a.parquet", made)
    write_parquet(tmp_path / "crowd" / "b.parquet", [rows(1)[0] | {"speaker": "x"} | fault for _, fault in faults])
    round_dir = make_round(tmp_path, text="hebrew-2")
    ledger = exported(round_dir)["sources"][0]
    reasons = [reason for reason, _ in faults]
    assert ledger["dropped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert ledger["read"] == 40 + len(faults) == ledger["kept"] + sum(ledger["dropped"].values())
    assert ledger["kept"] == ledger["train"] + ledger["eval"] == 40
    assert ledger["hours"] == pytest.approx(40 / 3600, abs=1e-4)
    assert read_json(round_dir.folder("export") / "ledger.json")["sources"][0] == ledger


def test_a_test_set_is_never_filtered(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(20))
    long, broken, empty, plain = rows(4)
    long["audio"]["bytes"] = encoded(tone(40.0, 8000), rate=8000)
    broken["audio"]["bytes"] = b"broken"
    empty["text"] = "  "
    plain["text"] = "  As found:  שָׁלוֹם!!!\n"
    write_parquet(tmp_path / "test" / "test.parquet", [long, broken, empty, plain])
    round_dir = make_round(tmp_path, text="hebrew-2")
    results = exported(round_dir)
    assert results["sets"][0]["dropped"] == {"empty text": 1, "not decodable": 1}
    found = read_manifest(round_dir.folder("export") / "sets" / "test.jsonl")
    assert [utterance.text for utterance in found] == [long["text"], "As found:  שָׁלוֹם!!!"]
    assert found[0].seconds == 40.0


def test_a_text_on_both_sides_is_counted(tmp_path: Path) -> None:
    made = rows(40)
    for row in made[::2]:
        row["text"] = "everybody says this"
    write_parquet(tmp_path / "crowd" / "a.parquet", made)
    ledger = exported(make_round(tmp_path))["sources"][0]
    assert ledger["dropped"] == {"text on both sides of the split": ledger["read"] - ledger["kept"]}
    assert ledger["dropped"]["text on both sides of the split"] > 0


def test_a_file_listed_twice_counts_once(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path / "crowd", rows(20))
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(lines + lines.splitlines()[3] + "\n")
    ledger = exported(make_round(tmp_path))["sources"][0]
    assert (ledger["read"], ledger["kept"], ledger["dropped"]) == (21, 20, {"listed twice": 1})


def test_an_imbalance_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: an utterance that vanishes without a reason."""
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(20))

    def drop_silently(self: Collection) -> None:
        self.side[3] = -1

    monkeypatch.setattr(Collection, "_drop_repeated", drop_silently)
    round_dir = make_round(tmp_path)
    with pytest.raises(StageFailed, match="ledger of crowd does not balance: read 20, kept 19, dropped 0"):
        perform(STAGE, round_dir)
    record = round_dir.record("export")
    assert record is not None
    assert record.status == "failed"
    assert not (round_dir.folder("export") / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("expected", "problems"),
    [
        ({"train": 32, "eval": 8}, []),
        ({"train": 32, "eval": 8, "hours": 0.0089}, []),
        ({"train": 33, "eval": 8}, ["data.expected.train = 33: the export found 32"]),
        ({"train": 64, "eval": 9}, ["data.expected.train = 64: the export found 32", "data.expected.eval = 9"]),
        ({"train": 32, "eval": 8, "hours": 2.5}, ["data.expected.hours = 2.5: the export found 0.0089"]),
    ],
)
def test_expected_counts(tmp_path: Path, expected: dict[str, float], problems: list[str]) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(40))
    round_dir = make_round(tmp_path, expected=expected)
    if not problems:
        exported(round_dir)
        return
    with pytest.raises(UserError) as caught:
        perform(STAGE, round_dir)
    assert len(caught.value.problems) == len(problems)
    assert all(said.startswith(problem) for said, problem in zip(caught.value.problems, problems, strict=True))
    assert not (round_dir.folder("export") / "train.jsonl").exists()


def test_materialised_audio(tmp_path: Path) -> None:
    made = rows(30)
    for n, kind in enumerate(["MP3", "FLAC", "OGG", "OPUS"]):
        made[n]["audio"]["bytes"] = encoded(tone(1.2, 48_000), kind, 48_000)
    made[9]["audio"]["bytes"] = _broken_inside()
    write_parquet(tmp_path / "crowd" / "a.parquet", made)
    write_jsonl(tmp_path / "studio", rows(10, people=3))
    sources = [{"name": "crowd", "path": "crowd"}, {"name": "studio", "path": "studio/train.jsonl"}]
    round_dir = make_round(tmp_path, sources=sources, materialise="wav", split={"by": ["speaker"], "eval": 0.2})
    results = exported(round_dir)
    folder = round_dir.folder("export")
    assert results["sources"][0]["dropped"] == {"not decodable": 1}

    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, folder))
    assert set(reader.roots) == {"@export", "test"}, "nothing but the export is needed from here on"
    for name in ("train", "eval"):
        utterances = read_manifest(folder / f"{name}.jsonl")
        upstream = list(read_json_lines(folder / "upstream" / f"{name}.jsonl"))
        nemo = list(read_json_lines(folder / "nemo" / f"{name}.json"))
        assert len(utterances) == results[name] == len(upstream) == len(nemo)
        for utterance, line, nemo_line in zip(utterances, upstream, nemo, strict=True):
            clip = reader.read(utterance.audio)
            assert len(clip) / 16_000 == utterance.seconds
            assert line == {"audio": nemo_line["audio_filepath"], "text": f"language Hebrew<asr_text>{utterance.text}"}
            assert nemo_line == {"audio_filepath": line["audio"], "duration": utterance.seconds, "text": utterance.text}
            info = soundfile.info(line["audio"])
            assert (info.samplerate, info.subtype, info.duration) == (16_000, "PCM_16", utterance.seconds)

    # what it wrote is a source again, in the upstream format
    again = make_round(tmp_path, "again", sources=[{"name": "crowd", "path": str(folder), "files": "upstream/*.jsonl"}])
    assert exported(again)["sources"][0]["kept"] == results["train"] + results["eval"]


def _broken_inside() -> bytes:
    """A FLAC whose header and end are fine, and whose middle is not."""
    data = bytearray(encoded(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1, "FLAC"))
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    return bytes(data)


def test_materialising_over_processes_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(300, seconds=0.8))
    write_parquet(tmp_path / "crowd" / "b.parquet", rows(40, seconds=0.8))
    one, two = (make_round(tmp_path, name, materialise="wav") for name in ("one", "two"))
    monkeypatch.setattr(export, "cores", lambda: 1)
    exported(one)
    monkeypatch.setattr(export, "cores", lambda: 2)
    monkeypatch.setattr(export, "SERIAL_BYTES", 0)
    exported(two)
    own = {"train", "eval"}
    first, second = (
        {name: sha for name, sha in files_of(r).items() if not name.startswith(("upstream", "nemo", ".inputs"))}
        for r in (one, two)
    )
    assert first == second
    assert {name for name in own if f"{name}.jsonl" in first} == own


def test_killed_at_every_point_and_run_again(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(5))
    write_parquet(tmp_path / "crowd" / "b.parquet", rows(4, people=2))
    round_dir = make_round(tmp_path, materialise="wav", split={"by": ["speaker"], "eval": 0.2})
    STAGE.work(round_dir)
    whole = files_of(round_dir)
    points = 0
    while True:
        shutil.rmtree(round_dir.folder("export"))
        points += 1
        if _killed_at(points, round_dir) == 0:
            break
        if points % 4 == 0:
            _killed_at(points + 5, round_dir)  # and once more on the way
        STAGE.work(round_dir)
        assert files_of(round_dir) == whole, f"killed at rename {points}"
    assert points > 20


def _killed_at(point: int, round_dir: RoundDir) -> int:
    """Run the stage in a fork that gets SIGKILL at its `point`th rename, before it (odd) or after it (even)."""
    child = os.fork()
    if child == 0:
        renames = 0
        rename = Path.replace

        def replace(self: Path, target: Path) -> Path:
            nonlocal renames
            renames += 1
            if renames == point and point % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            there = rename(self, target)
            if renames == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return there

        Path.replace = replace  # type: ignore[method-assign]
        code = 1
        try:
            os.close(2)
            STAGE.work(round_dir)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the fork ended with {status}"
    return status


def test_other_inputs_start_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(20))
    round_dir = make_round(tmp_path, materialise="wav")
    first = perform(STAGE, round_dir)[0]
    assert perform(STAGE, round_dir) == (first, False)
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(20, seconds=2.0))
    second, worked = perform(STAGE, round_dir)
    assert worked
    assert second.inputs != first.inputs
    utterances = read_manifest(round_dir.folder("export") / "train.jsonl")
    assert {utterance.seconds for utterance in utterances} == {2.0}, "no audio of the first run is left"


def test_inputs_are_content_not_place_or_time(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        writer(tmp_path / "one" / name, rows(12))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").rglob("*"):
        os.utime(path, (1, 1))
    sources = [{"name": name, "path": name} for name in WRITERS]
    one, two = (make_round(tmp_path / name, sources=sources) for name in ("one", "two"))
    first, second = perform(STAGE, one)[0], perform(STAGE, two)[0]
    assert first.inputs == second.inputs
    assert first.digest == second.digest
    clip = tmp_path / "two" / "tsv" / "clips" / "3.wav"
    clip.write_bytes(clip.read_bytes() + b"more")
    assert {name for name, sha in STAGE.inputs(two).items() if first.inputs[name] != sha} == {"data tsv"}


def test_columns_and_domains(tmp_path: Path) -> None:
    made = [
        {
            "clip": row["audio"]["bytes"],
            "noise": b"",
            "label": row["text"],
            "who": n % 5,
            "kind": ["phone", None][n % 2],
        }
        for n, row in enumerate(rows(20))
    ]
    write_parquet(tmp_path / "crowd" / "a.parquet", made)
    columns = {"audio": "clip", "text": "label", "speaker": "who", "domain": "kind"}
    round_dir = make_round(tmp_path, sources=[{"name": "crowd", "path": "crowd", "domain": "d", "columns": columns}])
    exported(round_dir)
    utterances = read_manifest(round_dir.folder("export") / "train.jsonl")
    assert {utterance.domain for utterance in utterances} == {"phone", "d"}
    assert {utterance.speaker for utterance in utterances} < set("01234")
    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, round_dir.folder("export")))
    assert len(reader.read(utterances[0].audio)) == 16_000
    assert utterances[0].audio.endswith(":clip")


def test_manifest_lines_are_what_they_were(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(20))
    round_dir = make_round(tmp_path)
    exported(round_dir)
    line = (round_dir.folder("export") / "train.jsonl").read_text().splitlines()[0]
    assert json.loads(line) == {
        "id": "crowd/a/0",
        "audio": "crowd/a.parquet#0",
        "text": "utterance number 0",
        "seconds": 1.0,
        "source": "crowd",
        "domain": "general",
        "recording": "r0",
        "speaker": "s0",
    }
