"""Audio: right samples from every format, clear refusals, and tables read as streams."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

import caspi.corpus.tables as tables
from caspi.corpus.audio import SAMPLE_RATE, AudioError, AudioReader, decode, seconds_of
from caspi.corpus.materialise import write_wav
from caspi.errors import UserError
from tests.standins.corpora import encoded, rows, tone, write_arrow, write_parquet

KINDS = ["WAV", "FLAC", "MP3", "OGG", "OPUS"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_every_format_and_rate(kind: str, rate: int) -> None:
    rate = 48_000 if kind == "OPUS" else rate
    data = encoded(tone(1.5, rate), kind, rate)
    clip = decode(data)
    assert clip.dtype == np.float32
    assert clip.flags.c_contiguous
    assert clip.shape == (24_000,)
    assert seconds_of(data) == pytest.approx(1.5, abs=1e-3)
    lossless = kind in ("WAV", "FLAC")
    middle = slice(2_000, -2_000)
    np.testing.assert_allclose(clip[middle], tone(1.5)[middle], atol=1e-4 if lossless else 0.03)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_as_librosa_resamples(rate: int) -> None:
    rng = np.random.default_rng(0)
    data = encoded(0.1 * rng.standard_normal(rate).astype(np.float32), rate=rate)
    ours, theirs = decode(data), librosa.load(io.BytesIO(data), sr=SAMPLE_RATE)[0]
    assert ours.shape == theirs.shape
    quiet_above = 20 * np.log10(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    assert quiet_above < -35, "they differ at the edge of the band only: soxr VHQ against HQ"


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(), np.zeros(16_000, np.float32)], axis=1)
    np.testing.assert_allclose(decode(encoded(stereo)), tone() / 2, atol=1e-4)


def test_floats_beyond_full_scale_are_clipped() -> None:
    clip = decode(encoded(3 * tone(), subtype="FLOAT"))
    assert np.abs(clip).max() == 1.0


NAN = tone()
NAN[100] = np.nan
BROKEN = [
    (b"", "no samples", "0 bytes"),
    (b"\0" * 5000, "not decodable", "not decodable"),
    (b"<html>404 not found</html>" * 20, "not decodable", "not decodable"),
    (b"RIFF\x24\0\0\0WAVE", "not decodable", "not decodable"),
    (encoded(np.zeros(0, np.float32)), "no samples", "no samples"),
    (encoded(NAN, subtype="FLOAT"), "not decodable", r"samples reach nan"),
    (encoded(30_000 * tone(), subtype="FLOAT"), "not decodable", r"audio lies in \[-1, 1\]"),
    (b"\0\0\0\x20ftypM4A " + b"\0" * 500, "format not supported: MPEG-4 m4a", "ffmpeg -i"),
    (b"\x1aE\xdf\xa3" + b"\0" * 500, "format not supported: Matroska webm", "ffmpeg -i"),
    (b"0&\xb2u\x8ef\xcf\x11" + b"\0" * 500, "format not supported: Windows Media wma", "ffmpeg -i"),
    (b"#!AMR\n" + b"\0" * 500, "format not supported: AMR amr", "ffmpeg -i"),
    (b"\xff\xf1\x50\x80" + b"\0" * 500, "format not supported: ADTS aac", "ffmpeg -i"),
]


@pytest.mark.parametrize(("data", "reason", "says"), BROKEN)
def test_not_audio(data: bytes, reason: str, says: str) -> None:
    with pytest.raises(AudioError, match=says) as caught:
        decode(data, "crowd/x#3")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("crowd/x#3: ")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value), "messages are the same in each run"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), reason)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.95])
def test_a_cut_file_is_found_by_its_ends_alone(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1
    data = encoded(noise, kind, 16_000)
    assert seconds_of(data) == pytest.approx(3.0, abs=1e-3)
    with pytest.raises(AudioError) as caught:
        seconds_of(data[: int(len(data) * share)])
    assert caught.value.reason in ("cut short", "not decodable")


def test_a_streamed_wav_does_not_know_its_length() -> None:
    data = bytearray(encoded(tone(2.0)))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert seconds_of(bytes(data)) == pytest.approx(2.0)


def test_an_mp3_after_a_picture() -> None:
    tag = b"ID3\x04\0\0\0\0\x0f\x00" + b"\0" * (15 << 7)
    assert seconds_of(tag + encoded(tone(2.0), "MP3")) == pytest.approx(2.0, abs=0.01)
    with pytest.raises(AudioError, match="the end is missing"):
        seconds_of((tag + encoded(tone(2.0), "MP3"))[:-2000])


@pytest.mark.parametrize("layout", ["parquet", "arrow stream", "arrow file"])
def test_rows_of_a_table(tmp_path: Path, layout: str) -> None:
    made = rows(25)
    if layout == "parquet":
        name = write_parquet(tmp_path / "a" / "t.parquet", made).name
    else:
        name = write_arrow(tmp_path / "a" / "t.arrow", made, stream=layout.endswith("stream")).name
    reader = pickle.loads(pickle.dumps(AudioReader({"crowd": tmp_path / "a"})))
    for row in [*range(25), 24, 0, 13, 12, 6, 7, 20]:
        data, suffix = reader.encoded(f"crowd/{name}#{row}")
        assert data == made[row]["audio"]["bytes"]
        assert suffix == ".wav"
        assert len(reader.read(f"crowd/{name}#{row}")) == 16_000


def test_rows_in_order_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_BYTES", 100_000)
    write_parquet(tmp_path / "t.parquet", rows(40), group=40)
    reader, batches = AudioReader({"crowd": tmp_path}), []
    original = tables.Table.group

    def counted(self: tables.Table, group: int, columns: list[str]):
        for start, batch in original(self, group, columns):
            batches.append(start)
            yield start, batch

    monkeypatch.setattr(tables.Table, "group", counted)
    for row in range(40):
        reader.encoded(f"crowd/t.parquet#{row}")
    assert batches == sorted(set(batches)), "a stream, not a start for each row"
    assert len(batches) > 5


def test_many_tables_few_open(tmp_path: Path) -> None:
    for n in range(12):
        write_parquet(tmp_path / f"{n}.parquet", rows(2))
    reader = AudioReader({"crowd": tmp_path})
    for n in [*range(12), 0, 11]:
        reader.encoded(f"crowd/{n}.parquet#1")
    assert len(reader._tables) == 8


def test_files_and_other_columns(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a#1.mp3").write_bytes(encoded(kind="MP3"))
    reader = AudioReader({"cv": tmp_path})
    assert reader.encoded("cv/clips/a#1.mp3")[1] == ".mp3"
    write_parquet(tmp_path / "t.parquet", [{"clip": encoded(), "noise": encoded(tone(2.0)), "text": "x"}])
    assert len(reader.read("cv/t.parquet#0:noise")) == 32_000
    with pytest.raises(UserError, match="no audio column; it has clip, noise, text"):
        reader.read("cv/t.parquet#0")


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        ("other/a.wav", '"other" is no source of this round; it has crowd'),
        ("crowd/../../etc/passwd", "leaves its source"),
        ("crowd//etc/passwd", "leaves its source"),
        ("crowd/gone.wav", "No such file"),
        ("crowd/gone.parquet#1", "no such file"),
        ("crowd/t.parquet#99", "no such row, it has 3; has the file changed"),
        ("crowd/t.parquet#x", "no row number"),
        ("crowd/t.parquet#-1", "no row number"),
        ("crowd/broken.parquet#0", "not readable as Parquet"),
        ("crowd", "Is a directory|No such file|leaves"),
    ],
)
def test_bad_references(tmp_path: Path, audio: str, says: str) -> None:
    write_parquet(tmp_path / "t.parquet", rows(3))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=says) as caught:
        AudioReader({"crowd": tmp_path}).read(audio)
    assert "\n" not in str(caught.value)


def test_a_written_wav_is_what_was_decoded(tmp_path: Path) -> None:
    clip = np.concatenate([tone(), np.array([1.0, -1.0], np.float32)])
    write_wav(tmp_path / "a" / "clip.wav", clip)
    info = soundfile.info(tmp_path / "a" / "clip.wav")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16_000, 1)
    back = soundfile.read(tmp_path / "a" / "clip.wav", dtype="float32")[0]
    np.testing.assert_allclose(back, clip, atol=1 / 32768)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["clip.wav"]
