"""Bad data: one clear line each, exit code 2, and no manifest half-written. (Broken rows are counted: test_export.)"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi.errors import UserError
from caspi.stages.export import STAGE
from caspi.stages.stage import perform
from tests.standins.corpora import encoded, make_round, rows, tone, write_arrow, write_jsonl, write_parquet, write_tsv

Make = Callable[[Path], object]


def text(name: str, content: str | bytes) -> Make:
    def make(crowd: Path) -> None:
        (crowd / name).parent.mkdir(parents=True, exist_ok=True)
        (crowd / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def parquet(*changes: dict[str, Any], drop: str = "", name: str = "a.parquet") -> Make:
    def make(crowd: Path) -> None:
        made = [row | change for row, change in zip(rows(len(changes)), changes, strict=True)]
        write_parquet(crowd / name, [{k: v for k, v in row.items() if k != drop} for row in made])

    return make


def damaged(crowd: Path) -> None:
    path = write_parquet(crowd / "a.parquet", rows(60), group=60)
    data = bytearray(path.read_bytes())
    data[4:3000] = os.urandom(2996)
    path.write_bytes(bytes(data))


def cut(crowd: Path) -> None:
    path = write_parquet(crowd / "a.parquet", rows(20))
    path.write_bytes(path.read_bytes()[:-100])


def cut_arrow(crowd: Path) -> None:
    path = write_arrow(crowd / "a.arrow", rows(20))
    path.write_bytes(path.read_bytes()[:50])


def tsv(content: str) -> Make:
    def make(crowd: Path) -> None:
        write_tsv(crowd, rows(3))
        (crowd / "validated.tsv").write_text(content)

    return make


def jsonl(line: str) -> Make:
    def make(crowd: Path) -> None:
        write_jsonl(crowd, rows(3))
        with (crowd / "train.jsonl").open("a") as file:
            file.write(line + "\n")

    return make


def two_kinds(crowd: Path) -> None:
    write_parquet(crowd / "a.parquet", rows(3))
    write_tsv(crowd, rows(3))


def two_tsvs(crowd: Path) -> None:
    write_tsv(crowd, rows(3))
    write_tsv(crowd, rows(3), "test.tsv")


def all_audio(data: bytes) -> Make:
    return parquet(*[{"audio": {"bytes": data, "path": "x"}}] * 12)


NAN = np.full(16_000, np.nan, np.float32)
EMPTY = {"audio": {"bytes": b"", "path": None}, "text": "x"}

CASES: list[tuple[str, Make, dict[str, Any], str]] = [
    ("no folder", lambda crowd: None, {}, r'data\.sources\[0\]\.path = "crowd": no such file or folder'),
    ("empty folder", lambda crowd: crowd.mkdir(), {}, "no .parquet, .arrow, .jsonl, .tsv file matches files: "),
    ("no match", parquet({}, {}), {"files": "train-*.parquet"}, r"matches files: train-\*\.parquet"),
    ("another kind", text("data.csv", "a,b\n"), {}, "nothing to read"),
    ("one wrong file", text("data.zip", "PK"), {"path": "crowd/data.zip"}, "nothing to read"),
    ("two kinds", two_kinds, {}, "holds a.parquet, validated.tsv: say which to read with files"),
    ("two lists", two_tsvs, {}, "holds test.tsv, validated.tsv: say which"),
    ("not parquet", text("a.parquet", "hello, this is no parquet file"), {}, "a.parquet: not readable as Parquet"),
    ("empty parquet", text("a.parquet", ""), {}, "a.parquet: is empty"),
    ("cut parquet", cut, {}, "a.parquet: not readable as Parquet"),
    ("damaged page", damaged, {}, "a.parquet: not readable as Parquet from row 0 on"),
    ("git lfs", text("a.parquet", "version https://git-lfs.github.com/spec/v1\noid x"), {}, "git lfs pull"),
    ("cut arrow", cut_arrow, {}, "a.arrow: not readable as Arrow"),
    ("empty arrow", text("a.arrow", ""), {}, "a.arrow: is empty"),
    ("no text", parquet({}, {}, drop="text"), {}, "no column is called text or sentence or transcript; it has audio, "),
    ("no audio", parquet({}, {}, drop="audio"), {}, "no column is called audio"),
    ("neither", parquet({"n": 1}, {"n": 2}, drop="text"), {"columns": {"audio": "sound"}}, "2 problems"),
    ("wrong columns", parquet({}, {}), {"columns": {"text": "label"}}, r'columns\.text = "label": there is no such'),
    ("text is number", parquet({"text": 1}, {"text": 2}), {}, r"the text is int \(1\); name the column"),
    ("audio is number", parquet({"audio": 1}, {"audio": 2}), {}, 'column "audio" holds int, not audio'),
    ("audio is a list", parquet({"audio": [1.5]}, {"audio": [2.5]}), {}, 'column "audio" holds list, not audio'),
    ("zero rows", lambda crowd: write_parquet(crowd / "a.parquet", []), {}, "no column is called"),
    ("no lines", text("a.jsonl", ""), {}, r"data\.sources\[0\] \(crowd\): has no rows"),
    ("only a header", tsv("client_id\tpath\tsentence\n"), {}, r"\(crowd\): has no rows"),
    ("no sentence", tsv("client_id\tpath\tage\nx\t0.wav\t9\n"), {}, "no column is called text or sentence"),
    ("ragged", tsv("path\tsentence\n0.wav\thello\tthere\n"), {}, "validated.tsv:2: 3 cells, the header has 2"),
    ("latin-1", text("a.tsv", "path\tsentence\n0.wav\tna\xefve\n".encode("latin-1")), {}, "a.tsv: not UTF-8 text"),
    ("no json", jsonl("{'audio': 'x'}"), {}, "train.jsonl:4: not valid JSON"),
    ("no object", jsonl('["a.wav", "text"]'), {}, "train.jsonl:4: expected a JSON object, got list"),
    ("no text key", text("a.jsonl", '{"audio": "a.wav"}\n'), {}, "a.jsonl: no column is called text"),
    ("leaves by ..", jsonl('{"audio": "../../x.wav", "text": "t"}'), {}, "train.jsonl:4: '../../x.wav' lies outside"),
    ("absolute", jsonl('{"audio": "/etc/passwd", "text": "t"}'), {}, "set path to a folder above both"),
    ("nul", jsonl('{"audio": "a\\u0000b.wav", "text": "t"}'), {}, "lies outside|nothing"),
    ("text list", jsonl('{"audio": "wavs/0.wav", "text": ["t"]}'), {}, "the text is list"),
    ("all missing", text("a.jsonl", '{"audio": "a.wav", "text": "t"}\n' * 3), {}, "nothing is left of 3 rows: audio"),
    (
        "all m4a",
        all_audio(b"\0\0\0\x20ftypM4A 123456"),
        {},
        "nothing is left of 12 rows: format not supported: MPEG-4 m4a",
    ),
    ("no audio at all", all_audio(b"PK\x03\x04 a zip"), {}, "nothing is left of 12 rows: not decodable 12"),
    ("all short", all_audio(encoded(tone(0.1))), {}, "nothing is left of 12 rows: too short 12"),
    ("one row", parquet({}), {}, "1 utterances can't be split"),
    ("one speaker", parquet(*[{"speaker": "a"}] * 30), {}, "holds 100% of the utterances"),
    (
        "one text",
        parquet(*[{"text": "same thing", "speaker": str(n), "recording": str(n)} for n in range(30)]),
        {},
        "dev would be empty",
    ),
]


@pytest.mark.parametrize(("make", "source", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_clear_line(tmp_path: Path, make: Make, source: dict[str, Any], says: str) -> None:
    make(tmp_path / "crowd")
    round_dir = make_round(tmp_path, sources=[{"name": "crowd", "path": "crowd"} | source])
    with pytest.raises(UserError, match=says) as caught:
        perform(STAGE, round_dir)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == (1 if len(caught.value.problems) == 1 else 3)
    assert all(len(line) < 400 for line in str(caught.value).splitlines())
    export = round_dir.folder("export")
    left = {path.name for path in export.rglob("*.json*")} if export.exists() else set()
    assert not left & {"train.jsonl", "eval.jsonl", "ledger.json", "record.json"}


def test_nan_is_found_where_it_is_decoded(tmp_path: Path) -> None:
    """The header of such a file is fine; materialising counts it, and reading it is an AudioError."""
    made = rows(20)
    made[4]["audio"]["bytes"] = encoded(NAN, subtype="FLOAT")
    write_parquet(tmp_path / "crowd" / "a.parquet", made)
    record, _ = perform(STAGE, make_round(tmp_path, materialise="wav"))
    assert record.results["sources"][0]["dropped"] == {"not decodable": 1}


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "data" / "a.parquet", rows(20))
    write_parquet(tmp_path / "crowd" / ".cache" / "b.parquet", rows(20))
    (tmp_path / "crowd" / "data" / "._a.parquet").write_bytes(b"what a Mac leaves")
    (tmp_path / "crowd" / "README.md").write_text("about")
    record, _ = perform(STAGE, make_round(tmp_path))
    assert record.results["sources"][0]["read"] == 20
