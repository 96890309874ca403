"""The hub: the real client against a local stand-in that breaks connections, refuses and counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.standins.corpora import make_round, rows, write_parquet
from tests.standins.hub import COMMIT, Hub, serve

# The client reads HF_ENDPOINT when it is imported, so it gets a process of its own.
ASK = """
import json, sys
import caspi.corpus.hub as hub
from caspi.errors import CaspiError
hub.PAUSE_SECONDS = 0
for question in json.load(sys.stdin):
    try:
        print(json.dumps(["found", str(hub.snapshot(*question))]))
    except CaspiError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""

EXPORT = """
import sys
from pathlib import Path
import caspi.corpus.hub as hub
from caspi.records.round_dir import open_round
from caspi.stages.export import STAGE
from caspi.stages.stage import perform
hub.PAUSE_SECONDS = 0
print(perform(STAGE, open_round(Path(sys.argv[1])))[0].results["train"])
"""


def python(code: str, hub: Hub, home: Path, *arguments: str, stdin: str = "", token: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not token or token not in done.stdout + done.stderr
    return done.stdout


def ask(hub: Hub, home: Path, *questions: tuple[str, str, str], token: str = "") -> list[list[str]]:
    out = python(ASK, hub, home, stdin=json.dumps(questions), token=token)
    return [json.loads(line) for line in out.splitlines()]


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(24_000_000)
    hub = Hub({"data/train-0.parquet": data, "data/other.parquet": b"PAR1", "README.md": b"about"})
    hub.cut_once = {"data/train-0.parquet": 14_000_000}
    question = ("owner/crowd", COMMIT, "data/train-*.parquet")
    with serve(hub):
        [[kind, folder]] = ask(hub, tmp_path, question)
        assert kind == "found"
        assert (Path(folder) / "data" / "train-0.parquet").read_bytes() == data
        first, second = hub.ranges("train-0.parquet")
        assert first is None
        assert second is not None, "the second request asks for the rest only"
        assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 14_000_000
        assert not hub.ranges("other.parquet"), "only what the glob names"
        assert hub.tokens == {None}, "no token of this machine's login is sent"

        asked = len(hub.requests)
        assert ask(hub, tmp_path, question) == [["found", folder]]
        assert len(hub.requests) == asked, "a complete snapshot needs no network"
        (Path(folder) / "data" / "train-0.parquet").unlink()
        assert ask(hub, tmp_path, question) == [["found", folder]]
        assert (Path(folder) / "data" / "train-0.parquet").read_bytes() == data


def test_a_round_from_the_hub_leaves_no_trace_of_the_token(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", rows(20))
    hub = Hub({"data/train [1].parquet": (tmp_path / "a.parquet").read_bytes()}, token="hf_planted", failing=3)
    source = {"name": "crowd", "hub": "owner/crowd", "revision": COMMIT, "files": "data/*.parquet"}
    round_dir = make_round(tmp_path, sources=[source])
    with serve(hub):
        assert python(EXPORT, hub, tmp_path / "hf", str(round_dir.path), token="hf_planted") == "16\n"
    assert hub.tokens == {"Bearer hf_planted"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if b"hf_planted" in path.read_bytes()]


QUESTIONS = [
    (
        ("owner/crowd", "main", "**/*"),
        "UserError",
        f'revision "main" is no full commit and may move; it is {COMMIT} now',
    ),
    (
        ("owner/crowd", "v9", "**/*"),
        "UserError",
        'revision "v9" is no full commit and may move; take one from https://',
    ),
    (("owner/none", COMMIT, "**/*"), "UserError", "no such repository, revision or file on the hub"),
    (("owner/crowd", "f" * 40, "**/*"), "UserError", "no such repository, revision or file on the hub"),
    (
        ("owner/crowd", COMMIT, "*.wav"),
        "UserError",
        "no .parquet or .arrow file matches files: *.wav; it has README.md",
    ),
    (("owner/crowd", COMMIT, "**/*"), "found", COMMIT),
]


def test_refusals_are_one_line(tmp_path: Path) -> None:
    hub = Hub({"a.parquet": b"PAR1", "README.md": b"about"})
    with serve(hub):
        answers = ask(hub, tmp_path, *[question for question, _, _ in QUESTIONS])
    for (kind, line), (_, expected, says) in zip(answers, QUESTIONS, strict=True):
        assert kind == expected
        assert says in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("token", "state"), [("", "HF_TOKEN is not set"), ("hf_wrong", "HF_TOKEN has no access to it")]
)
def test_a_gated_dataset(tmp_path: Path, token: str, state: str) -> None:
    with serve(Hub({"a.parquet": b"PAR1"}, token="hf_right")) as hub:
        [[kind, line]] = ask(hub, tmp_path, ("owner/crowd", COMMIT, "**/*"), token=token)
    assert kind == "UserError"
    assert state in line


def test_an_outage_ends_in_one_line_and_what_is_there_still_works(tmp_path: Path) -> None:
    hub = Hub({"a.parquet": b"PAR1"})
    with serve(hub):
        [[kind, folder]] = ask(hub, tmp_path, ("owner/crowd", COMMIT, "**/*"))
        assert kind == "found"
    answers = ask(hub, tmp_path, ("owner/crowd", COMMIT, "a*.parquet"), ("owner/crowd", COMMIT, "**/*"))
    assert answers[0][0] == "StageFailed"
    assert f"{hub.url} is out of reach (" in answers[0][1]
    assert "goes on where it stopped" in answers[0][1]
    assert answers[1] == ["found", folder]
