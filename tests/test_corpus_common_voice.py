"""A Common Voice folder as it is downloaded: its TSVs with their real columns, real MP3s, and what breaks in them.
And the subset of a large one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi.corpus.audio import AudioReader
from caspi.corpus.index import Rules, drawn, index_shard, read_part
from caspi.corpus.manifest import Utterance, read_manifest
from caspi.corpus.roots import roots
from caspi.corpus.sources import Shard
from caspi.errors import UserError
from caspi.plan import make_plan, render
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec
from caspi.stages.export import STAGE
from caspi.stages.stage import perform
from tests.standins.corpora import encoded, make_round, rows, tone, write_parquet

HEADER = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\t"
    "locale\tsegment"
)
SENTENCES = [
    '"Well," he said, "an army is coming."',  # TSVs of Common Voice quote nothing: a quote is a quote
    "It’s the boy's third café.",
    'She called it "art',  # an open one does not swallow the rows below
    "He won’t go — not ever!",
]


def line(name: str, sentence: str, person: int) -> str:
    return f"{person:0128x}\t{name}\t{'ab' * 32}\t{sentence}\t\t2\t0\ttwenties\tmale_masculine\t\t\ten\t"


def common_voice(folder: Path, count: int = 24, people: int = 8) -> Path:
    """train.tsv, dev.tsv, test.tsv, validated.tsv and clip_durations.tsv over clips/*.mp3 at 48 kHz."""
    (folder / "clips").mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for n in range(count):
        name = f"common_voice_en_{n}.mp3"
        (folder / "clips" / name).write_bytes(encoded(tone(1.5 + n / 100, 48_000, 200 + 20 * n), "MP3", 48_000))
        sentence = f"{SENTENCES[n % len(SENTENCES)]} {chr(65 + n)}"
        lists["test" if n % 6 == 5 else "train"].append(line(name, sentence, n % people))
    for name, lines in {**lists, "validated": [*lists["train"], *lists["test"]]}.items():
        (folder / f"{name}.tsv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\nx.mp3\t1500\n", encoding="utf-8")
    return folder


def round_over(tmp_path: Path, **data: Any) -> RoundDir:
    source = {"name": "cv", "path": "cv", "files": "train.tsv"}
    return make_round(tmp_path, sources=[source], text="english-upper-1", **data)


def train_and_dev(round_dir: RoundDir) -> list[Utterance]:
    folder = round_dir.folder("export")
    return [one for name in ("train", "eval") for one in read_manifest(folder / f"{name}.jsonl")]


def test_the_folder_as_it_is_downloaded(tmp_path: Path) -> None:
    common_voice(tmp_path / "cv")
    round_dir = round_over(tmp_path)
    results = perform(STAGE, round_dir)[0].results
    utterances = train_and_dev(round_dir)
    assert (results["sources"][0]["read"], len(utterances)) == (20, 20)
    assert {one.speaker for one in utterances} == {f"{person:0128x}" for person in range(8)}
    texts = {one.audio: one.text for one in utterances}
    assert texts["cv/clips/common_voice_en_0.mp3"] == "WELL HE SAID AN ARMY IS COMING A"
    assert texts["cv/clips/common_voice_en_1.mp3"] == "IT'S THE BOY'S THIRD CAFE B"
    assert texts["cv/clips/common_voice_en_2.mp3"] == "SHE CALLED IT ART C"
    folder = round_dir.folder("export")
    train, dev = ({one.speaker for one in read_manifest(folder / f"{name}.jsonl")} for name in ("train", "eval"))
    assert not train & dev, "no speaker on both sides"
    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, round_dir.folder("export")))
    for one in utterances:
        clip = reader.read(one.audio)
        assert len(clip) / 16_000 == pytest.approx(one.seconds, abs=0.06)
        assert 0.1 < float(np.abs(clip).max()) <= 1.0


def test_its_test_list_is_a_test_set(tmp_path: Path) -> None:
    common_voice(tmp_path / "cv")
    spec = round_over(tmp_path).spec
    test_set = spec.benchmark.sets[0].model_copy(update={"path": "cv", "files": "test.tsv"})
    changed = spec.model_copy(update={"benchmark": spec.benchmark.model_copy(update={"sets": [test_set]})})
    round_dir = create(tmp_path / "runs", changed, ClusterSpec(), tmp_path)
    perform(STAGE, round_dir)
    found = read_manifest(round_dir.folder("export") / "sets" / "test.jsonl")
    assert [one.text for one in found] == [f"{SENTENCES[n % 4]} {chr(65 + n)}" for n in (5, 11, 17, 23)], "as found"


def test_several_lists_have_to_be_chosen_from(tmp_path: Path) -> None:
    common_voice(tmp_path / "cv")
    with pytest.raises(UserError, match=r"holds clip_durations.tsv, dev.tsv, test.tsv, train.tsv, ...: say which"):
        perform(STAGE, make_round(tmp_path, sources=[{"name": "cv", "path": "cv"}]))
    with pytest.raises(UserError, match=r"no column is called audio .* it has clip, duration\[ms\]"):
        perform(STAGE, make_round(tmp_path, sources=[{"name": "cv", "path": "cv", "files": "clip_durations.tsv"}]))


def test_broken_clips_are_counted_by_reason(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "cv")
    whole = (folder / "clips" / "common_voice_en_0.mp3").read_bytes()
    for number, data in ((0, b""), (1, whole[: len(whole) // 2]), (2, b"<html>404</html>" * 99), (3, None)):
        clip = folder / "clips" / f"common_voice_en_{number}.mp3"
        clip.unlink() if data is None else clip.write_bytes(data)
    ledger = perform(STAGE, round_over(tmp_path))[0].results["sources"][0]
    assert ledger["dropped"] == {"audio file missing": 1, "cut short": 1, "no samples": 1, "not decodable": 1}
    assert ledger["read"] == 20 == ledger["kept"] + 4


def test_text_that_the_vocabulary_can_not_spell_is_counted(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "cv")
    with (folder / "train.tsv").open("a", encoding="utf-8") as file:
        for n, sentence in enumerate(["It was 1984.", "Мир", "", "..."]):
            file.write(line(f"common_voice_en_{n}.mp3", sentence, 99) + "\n")
    ledger = perform(STAGE, round_over(tmp_path))[0].results["sources"][0]
    assert ledger["dropped"] == {"empty text": 2, "text not in A-Z": 2}


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "cv")
    with (folder / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("abc\tcommon_voi")
    with pytest.raises(UserError, match=r"train\.tsv:22: 2 cells, the header has 13"):
        perform(STAGE, round_over(tmp_path))


# --- the subset


def test_the_ledger_of_a_subset_balances(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(60, people=30, seconds=0.6))
    round_dir = make_round(tmp_path, subset="50%")
    results = perform(STAGE, round_dir)[0].results
    ledger = results["sources"][0]
    assert ledger["read"] == 60 == ledger["kept"] + sum(ledger["dropped"].values())
    assert 15 < ledger["dropped"]["subset"] < 45
    assert results["sets"][0]["dropped"] == {}, "a test set is whole"
    assert "a subset of 50%" in render(make_plan(round_dir.spec, ClusterSpec(), round_dir))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_a_subset_has_its_share_whatever_the_seed(share: float) -> None:
    for seed in range(5):
        chosen = [n for n in range(20_000) if drawn(f"crowd/{n}", share, seed)]
        assert len(chosen) / 20_000 == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)
        assert {n for n in chosen if n >= 10_000}, "from everywhere"


def test_a_subset_depends_on_seed_and_id_alone() -> None:
    """Not on what stands beside an utterance; and a larger share holds a smaller one, so that a round can grow."""
    ids = [f"crowd/{n}" for n in range(5_000)]
    tenth, half = ({one for one in ids if drawn(one, share, 7)} for share in (0.1, 0.5))
    assert tenth < half
    assert tenth != {one for one in ids if drawn(one, 0.1, 8)}
    assert tenth == {one for one in [*ids[2_500:], *ids[:2_500]] if drawn(one, 0.1, 7)}


def test_what_is_not_in_the_subset_is_not_even_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = common_voice(tmp_path / "cv")
    looked_at: Counter[str] = Counter()

    def seconds_of(data: Path, where: str) -> float:
        looked_at[where] += 1
        return 2.0

    monkeypatch.setattr("caspi.corpus.index.seconds_of", seconds_of)
    part = tmp_path / "part.jsonl"
    index_shard(Shard("cv", folder, "train.tsv", {}), Rules("general", "plain-1", None, 0.3, 1), part)
    *kept, counts = read_part(part)
    assert set(looked_at) == {one["audio"] for one in kept}
    assert counts == {"read": 20, "dropped": {"subset": 20 - len(kept)}}
    assert 0 < len(kept) < 20
