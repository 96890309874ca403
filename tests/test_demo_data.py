"""The committed speech of the demo: small, whole, and spoilt exactly where faults.json says so."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import soxr

DEMO = Path(__file__).parents[1] / "demo"
WORDS = "שלום תודה בוקר טוב אבא אמא ילד רוצה מים תפוח כלב חתול ספר בית תא"

Samples = npt.NDArray[np.float64]


@cache
def rows() -> dict[str, dict[str, Any]]:
    """All rows by the name that a manifest gives them: crowd/train-00000-of-00003.parquet#17."""
    return {
        f"{path.parent.name}/{path.name}#{number}": row
        for path in sorted(DEMO.glob("*/*.parquet"))
        for number, row in enumerate(pq.read_table(path).to_pylist())
    }


@cache
def faults() -> dict[str, dict[str, str]]:
    listed = json.loads((DEMO / "faults.json").read_text(encoding="utf-8"))
    by_audio = {fault["audio"]: fault for fault in listed}
    assert len(by_audio) == len(listed)
    return by_audio


@cache
def samples(audio: str) -> Samples:
    """At 8 kHz: what every codec here still carries."""
    data, rate = sf.read(io.BytesIO(rows()[audio]["audio"]["bytes"]), always_2d=True)
    return soxr.resample(data[:, 0], rate, 8_000)


def words(text: str) -> list[str]:
    """What a normaliser must make of it; written here anew, to be independent of it."""
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))
    return re.sub(r'[״"?!.]', "", kept.replace("־", " ")).split()


def of_kind(*kinds: str) -> list[str]:
    return [audio for audio, fault in faults().items() if fault["kind"] in kinds]


def sound() -> list[str]:
    return [audio for audio in rows() if audio not in faults()]


def characters_per_second(audio: str) -> float:
    return len(" ".join(words(rows()[audio]["text"]))) / (samples(audio).size / 8_000)


def likeness(one: Samples, other: Samples) -> float:
    """Highest correlation of two clips over shifts of up to 60 ms, whatever their levels: 1 is the same sound."""
    size = max(one.size, other.size) + 480
    correlation = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    nearby = np.concatenate([correlation[:480], correlation[-480:]])
    return float(nearby.max() / np.linalg.norm(one) / np.linalg.norm(other))


def test_it_is_small_enough_to_clone() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 10_000_000


@pytest.mark.parametrize(
    ("files", "domain", "at_least"),
    [
        ("crowd/train-*", "phone", 850),
        ("studio/train-*", "studio", 350),
        ("test/clean-*", "studio", 110),
        ("test/phone-*", "phone", 110),
    ],
)
def test_files_are_hugging_face_parquet(files: str, domain: str, at_least: int) -> None:
    found = sorted(DEMO.glob(f"{files}.parquet"))
    tables = [pq.ParquetFile(path) for path in found]
    assert sum(table.metadata.num_rows for table in tables) >= at_least
    for path, table in zip(found, tables, strict=True):
        assert re.fullmatch(rf"\w+-\d{{5}}-of-{len(found):05}\.parquet", path.name)
        assert [str(field.type) for field in table.schema_arrow] == [
            "struct<bytes: binary, path: string>", "string", "string", "string", "string",
        ]  # fmt: skip
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == table.schema_arrow.names == ["audio", "text", "speaker", "recording", "domain"]
        assert features["audio"] == {"_type": "Audio"}
        groups = [table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups)]
        assert set(groups[:-1]) <= {100} and groups[-1] <= 100
        assert set(table.read(["domain"])["domain"].to_pylist()) == {domain}


def test_all_else_decodes_and_is_speech_of_a_common_length() -> None:
    for audio in sound():
        clip = samples(audio)
        assert 0.5 < clip.size / 8_000 < 4, audio
        assert 0.15 < np.abs(clip).max() < 1.3, audio
        assert 4 < characters_per_second(audio) < 14, audio


def test_all_else_uses_the_vocabulary_and_covers_it() -> None:
    for folder in ("crowd", "studio", "test"):
        count = Counter(word for audio in sound() if audio.startswith(folder) for word in words(rows()[audio]["text"]))
        assert set(count) == set(WORDS.split())
        assert min(count.values()) >= 5, count
    assert all(2 <= len(words(rows()[audio]["text"])) <= 5 for audio in sound())


def test_codecs_rates_and_spellings_are_mixed() -> None:
    crowd = [audio for audio in sound() if audio.startswith("crowd")]
    codecs = Counter(Path(rows()[audio]["audio"]["path"]).suffix for audio in crowd)
    assert set(codecs) == {".mp3", ".ogg", ".opus", ".flac", ".wav"}
    rates = {sf.info(io.BytesIO(rows()[audio]["audio"]["bytes"])).samplerate for audio in crowd}
    assert {8_000, 16_000, 22_050, 44_100, 48_000} <= rates
    texts = [rows()[audio]["text"] for audio in crowd]
    for mark in ("\u05bc", "\u05be", "\u05f4", '"', "??", "\u200f", "  "):  # dagesh, maqaf, gershayim, ...
        assert any(mark in text for text in texts), f"no text has {mark!r}"


def test_speakers_and_texts_of_the_test_sets_are_unseen() -> None:
    train = [audio for audio in rows() if not audio.startswith("test")]
    test = [audio for audio in rows() if audio.startswith("test")]
    for name in ("speaker", "recording"):
        assert not {rows()[audio][name] for audio in train} & {rows()[audio][name] for audio in test}
    # Not the voice at another pitch either.
    voices = [{rows()[audio]["speaker"].split("-")[0] for audio in part} for part in (train, test)]
    assert not voices[0] & voices[1]
    said = {tuple(words(rows()[audio]["text"])) for audio in test}
    known = {audio for audio in train if tuple(words(rows()[audio]["text"])) in said}
    assert known == set(of_kind("leaked", "leaked_reencoded"))


def test_as_many_faults_as_an_audit_has_to_find() -> None:
    kinds = Counter(fault["kind"] for fault in faults().values())
    crowd = sum(audio.startswith("crowd") for audio in rows())
    assert all(audio.startswith("crowd/") for audio in faults())
    assert 0.04 < (kinds["wrong_text"] + kinds["text_too_long"] + kinds["text_too_short"]) / crowd < 0.07
    del kinds["wrong_text"]  # whole recordings, of one length or another
    assert kinds == {
        "text_too_long": 14, "text_too_short": 8, "conflicting_text": 10, "duplicate": 8, "duplicate_reencoded": 7,
        "leaked": 7, "leaked_reencoded": 7, "silent": 10, "clipped": 10, "quiet": 6, "corrupt": 3, "empty_text": 2,
        "too_short": 2, "too_long": 2,
    }  # fmt: skip


def test_silent_clipped_and_quiet() -> None:
    assert all(np.sqrt(np.mean(samples(audio) ** 2)) < 3e-4 for audio in of_kind("silent"))
    for audio in of_kind("clipped"):
        clip = np.abs(samples(audio))
        assert np.mean(clip > 0.95) > 0.03, audio
    assert all(0.0005 < np.abs(samples(audio)).max() < 0.004 for audio in of_kind("quiet"))


def test_corrupt_files_do_not_decode() -> None:
    for audio in of_kind("corrupt"):
        with pytest.raises(sf.LibsndfileError):
            samples(audio)


def test_too_short_too_long_and_empty() -> None:
    assert all(samples(audio).size / 8_000 < 0.4 for audio in of_kind("too_short"))
    assert all(samples(audio).size / 8_000 > 12 for audio in of_kind("too_long"))
    assert all(not words(rows()[audio]["text"]) for audio in of_kind("empty_text"))


def test_texts_too_long_and_too_short_stand_out() -> None:
    assert all(characters_per_second(audio) > 15 for audio in of_kind("text_too_long"))
    assert all(characters_per_second(audio) < 3.2 for audio in of_kind("text_too_short"))


def test_wrong_texts_slipped_within_their_recording() -> None:
    """Each is another one's, so a whole recording is wrong though every text in it is true of something."""
    recordings = {rows()[audio]["recording"] for audio in of_kind("wrong_text")}
    assert len(recordings) == 6
    for audio, row in rows().items():
        if row["recording"] in recordings:
            assert audio in of_kind("wrong_text")


@pytest.mark.parametrize("kind", ["conflicting_text", "duplicate", "leaked"])
def test_copies_are_byte_equal(kind: str) -> None:
    for audio in of_kind(kind):
        assert rows()[audio]["audio"]["bytes"] == rows()[faults()[audio]["of"]]["audio"]["bytes"]


@pytest.mark.parametrize("kind", ["duplicate_reencoded", "leaked_reencoded"])
def test_copies_in_another_codec_sound_the_same(kind: str) -> None:
    for audio in of_kind(kind):
        original = faults()[audio]["of"]
        suffixes = [Path(rows()[name]["audio"]["path"]).suffix for name in (audio, original)]
        assert suffixes[0] != suffixes[1]
        assert likeness(samples(audio), samples(original)) > 0.9, audio
        stranger = next(name for name in sound() if rows()[name]["speaker"] == rows()[original]["speaker"])
        assert stranger == original or likeness(samples(audio), samples(stranger)) < 0.6


def test_copies_come_from_elsewhere_and_conflicts_say_something_else() -> None:
    for audio in of_kind("duplicate", "duplicate_reencoded", "leaked", "leaked_reencoded"):
        copy, original = rows()[audio], rows()[faults()[audio]["of"]]
        assert copy["speaker"] != original["speaker"] and copy["recording"] != original["recording"]
    for audio in of_kind("conflicting_text"):
        assert words(rows()[audio]["text"]) != words(rows()[faults()[audio]["of"]]["text"])
    duplicates = of_kind("duplicate", "duplicate_reencoded")
    heard_otherwise = [a for a in duplicates if words(rows()[a]["text"]) != words(rows()[faults()[a]["of"]]["text"])]
    assert len(heard_otherwise) == 5
