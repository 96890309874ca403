"""`caspi preview`: exactly what training hears, in a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import read_manifest
from caspi.corpus.roots import roots
from caspi.families import family_of
from caspi.families.base import Batch
from caspi.files import write_json
from caspi.preview.heard import hear
from caspi.preview.page import write_preview
from caspi.preview.picture import HIDDEN, data_uri, png
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages.export import STAGE as EXPORT
from caspi.stages.stage import perform
from caspi.training.data import Orders, Speech
from tests.command import caspi
from tests.standins.corpora import make_round, rows, write_parquet

ALL = {
    "specaugment": {"freq": [2, 20], "time": [2, 40]},
    "speed": [0.9, 1.0, 1.1],
    "noise": {"snr": [5, 15], "share": 0.5},
}
QWEN = {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"}
CTC = {"family": "ctc", "base": "tiny", "language": "English"}


def exported(folder: Path, model: dict[str, str] = QWEN, augment: dict[str, Any] = ALL, **changes: Any) -> RoundDir:
    """A round of 30 tones, exported."""
    write_parquet(folder / "crowd" / "a.parquet", rows(30))
    values = yaml.safe_load((make_round(folder).path / "round.yaml").read_text("utf-8"))
    values["model"] = model
    values["train"]["phases"][0]["epochs"] = 3
    values["train"]["augment"] = augment
    values["data"]["sources"][0] |= changes
    round_dir = create(folder / "runs", parse(values, RoundSpec, "round"), ClusterSpec(), folder)
    perform(EXPORT, round_dir)
    return round_dir


def trained_on(round_dir: RoundDir, epoch: int, world_size: int) -> dict[tuple[str, int], np.ndarray]:
    """What training itself collates in an epoch, on so many ranks, by utterance and copy: with the real model."""
    torch.set_num_threads(1)
    spec = round_dir.spec
    utterances = read_manifest(round_dir.folder("export") / "train.jsonl")
    family = family_of(spec.model)
    base = family.prepare(spec.model, [one.text for one in utterances], spec.seed, round_dir.path / "base")
    model: Any = family.load(base, spec.model, "cpu")
    taken: list[Any] = []
    model.collate = lambda examples: (taken.extend(examples), Batch({}, 0))[1]
    reader = AudioReader(roots(spec, round_dir.data_root, round_dir.folder("export")))
    speech = Speech(spec, utterances, reader, model)
    found = {}
    for rank in range(world_size):
        orders = Orders(spec, utterances, rank, world_size, 20.0)
        first = epoch * orders.steps_per_epoch
        for order in orders.from_step(first, first + orders.steps_per_epoch):
            taken.clear()
            assert not speech[order].skipped
            for index, copy, example in zip(order.utterances, order.copies, taken, strict=True):
                found[utterances[index].id, copy] = example.features
    return found


@pytest.mark.parametrize("model", [QWEN, CTC], ids=["qwen3-asr", "ctc"])
def test_it_is_what_training_hears_to_the_last_bit(tmp_path: Path, model: dict[str, str]) -> None:
    round_dir = exported(tmp_path, model)
    heard = hear(round_dir, 24, 1)
    assert len(heard) == 24
    trained = trained_on(round_dir, epoch=1, world_size=2)
    for one in heard:
        assert np.array_equal(one.features, trained[one.utterance.id, 0])
    other = {one.utterance.id: one for one in hear(round_dir, 24, 2)}
    assert any(not np.array_equal(one.features, other[one.utterance.id].features) for one in heard), "epochs differ"
    assert set(other) == {one.utterance.id for one in heard}, "the same utterances, to compare epochs"


def test_its_numbers_are_those_of_the_sound(tmp_path: Path) -> None:
    heard = hear(exported(tmp_path), 24, 0)
    assert {one.speed for one in heard} == {0.9, 1.0, 1.1}
    noisy = [one.snr for one in heard if one.snr is not None]
    assert 0 < len(noisy) < len(heard)
    assert all(4.8 <= snr <= 15.2 for snr in noisy), noisy
    for one in heard:
        assert len(one.after) == pytest.approx(len(one.before) / one.speed, abs=2)
        assert one.features.shape == one.masked.shape
        kept = ~one.masked
        assert len(np.unique(one.features[one.masked])) <= 1, "one value hides"
        assert kept.any()
    assert any(one.masked.any() for one in heard)


def test_masks_can_be_heard_where_the_network_reads_the_waveform(tmp_path: Path) -> None:
    for one in hear(exported(tmp_path, CTC, {"specaugment": ALL["specaugment"]}), 12, 0):
        silent = one.after == 0
        assert np.array_equal(silent[1:-1], (one.masked[0] | (one.before == 0))[: len(silent)][1:-1])


def test_without_augmentation_nothing_changes(tmp_path: Path) -> None:
    for one in hear(exported(tmp_path, augment={}), 8, 0):
        assert np.array_equal(one.before, one.after)
        assert np.array_equal(one.plain, one.features)
        assert (one.snr, one.speed, one.masked.any()) == (None, 1.0, False)


def test_only_utterances_of_the_epoch_are_shown(tmp_path: Path) -> None:
    """A weight of 0.5 takes every other utterance; what the audit leaves out is never there."""
    round_dir = exported(tmp_path, weight=0.5)
    everything = read_manifest(round_dir.folder("export") / "train.jsonl")
    by_epoch = [{one.utterance.id for one in hear(round_dir, 50, epoch)} for epoch in (0, 1)]
    for epoch, shown in enumerate(by_epoch):
        assert {id for id, copy in trained_on(round_dir, epoch, 1) if copy == 0} == shown
    assert by_epoch[0] != {one.id for one in everything}
    gone = sorted(by_epoch[0])[0]
    write_json(round_dir.folder("audit") / "left_out.json", [gone])
    assert gone not in {one.utterance.id for epoch in range(3) for one in hear(round_dir, 50, epoch)}


class Sources(HTMLParser):
    """Everything that a page asks for, and its audio."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.audio: list[bytes] = []
        self.images: list[bytes] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("src", "href"):
            if value := values.get(name):
                self.asked.append(value)
        data = base64.b64decode((values.get("src") or "").partition("base64,")[2])
        if tag == "audio":
            self.audio.append(data)
        if tag == "img":
            self.images.append(data)


def test_the_page_stands_alone_and_its_sounds_and_pictures_are_whole(tmp_path: Path) -> None:
    round_dir = exported(tmp_path, domain='<script>alert("x")</script>')
    path = write_preview(round_dir, count=5, epoch=2)
    assert path == round_dir.path / "preview" / "epoch-2.html"
    page = path.read_text(encoding="utf-8")
    found = Sources(page)
    assert found.asked
    assert all(source.startswith("data:") for source in found.asked)
    assert "<script" not in page
    heard = hear(round_dir, 5, 2)
    assert len(found.audio) == len(found.images) == 10
    for number, one in enumerate(heard):
        for data, clip in zip(found.audio[2 * number :], (one.before, one.after), strict=False):
            sound, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            assert rate == 16_000
            assert np.allclose(sound, np.clip(clip, -1, 1), atol=1e-4)
        width, height, pixels = read_png(found.images[2 * number + 1])
        assert (height, width) == one.features.shape
        assert np.array_equal(pixels[::-1] == HIDDEN, one.masked)
        assert f"speed {one.speed:g}" in page
        assert one.utterance.text in page
    assert write_preview(round_dir, count=5, epoch=2).read_text(encoding="utf-8") == page, "equal bytes each time"


def read_png(data: bytes) -> tuple[int, int, np.ndarray]:
    """Width, height and palette indices of a PNG as this project writes it, each checksum looked at."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        chunks[kind] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunks[kind])
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour, len(chunks[b"PLTE"])) == (8, 3, 768)
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    assert not raw[:, 0].any()
    return width, height, raw[:, 1:]


def test_a_picture_says_loudness_by_colour() -> None:
    features = np.array([[0.0, 1.0], [-5.0, 7.0]], dtype=np.float32)
    hidden = np.array([[False, False], [False, True]])
    _, _, pixels = read_png(base64.b64decode(data_uri(features, hidden, 0.0, 1.0).partition(",")[2]))
    assert pixels.tolist() == [[0, HIDDEN], [0, HIDDEN - 1]]
    assert read_png(png(np.zeros((3, 5), dtype=np.uint8)))[:2] == (5, 3)


def test_refusals(tmp_path: Path) -> None:
    write_parquet(tmp_path / "crowd" / "a.parquet", rows(30))
    fresh = make_round(tmp_path, "fresh")
    done = caspi("preview", str(fresh.path))
    assert done.code == 2
    assert re.search(r"stage export has not run; run `caspi stage export --round-dir .*fresh-\w{8}`", done.err)
    round_dir = exported(tmp_path)
    for arguments, says in (
        (("--epoch", "3"), "--epoch 3: the round has epochs 0 to 2"),
        (("--count", "0"), "--count 0: from 1 to 50"),
    ):
        done = caspi("preview", str(round_dir.path), *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert says in done.err
    done = caspi("preview", str(round_dir.path), "--count", "2")
    assert done.code == 0, done.err
    assert Path(done.out.strip()).is_file()


def test_a_clip_that_cannot_be_read_is_skipped_as_training_skips_it(tmp_path: Path) -> None:
    round_dir = exported(tmp_path)
    before = [one.utterance.id for one in hear(round_dir, 4, 0)]
    broken = rows(30)
    broken[int(before[0].rpartition("/")[2])]["audio"]["bytes"] = b"RIFF not audio"
    write_parquet(tmp_path / "crowd" / "a.parquet", broken)
    after = [one.utterance.id for one in hear(round_dir, 4, 0)]
    assert before[0] not in after
    assert len(after) == 4
    assert after[:3] == before[1:]
