"""A disk that is full: one line with the way out, the code that no retry follows, and every checkpoint whole."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from caspi.errors import Diverged, StageFailed
from caspi.files import no_space_left
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages.stage import Outcome, Stage, perform
from caspi.training.checkpoint import newest_checkpoint
from caspi.training.engine import Work
from tests.test_bad_input import GOOD
from tests.training_work import Tones, trained_by, work_in

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Found(BaseModel):
    """Nothing."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    if os.getuid() != 0:
        pytest.skip("to mount a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_training_on_a_disk_that_fills_up(disk: Path) -> None:
    class Filling(Tones):
        """As soon as there is a checkpoint, something else takes the rest of the disk."""

        def read(self, audio: str) -> Any:
            if (disk / "train/latest").exists() and not (disk / "filler").exists():
                fill(disk)
            return super().read(audio)

    with pytest.raises(StageFailed) as caught:
        trained_by(reading(work_in(disk), Filling()))
    assert str(caught.value) == (
        f"no space left on {disk / 'train'}: the last checkpoint (step 5) is whole; "
        "free some space or enlarge the claim, then run the same again"
    )
    whole_at(disk, 5)
    (disk / "filler").unlink()
    assert trained_by(work_in(disk)).steps == 24


def test_a_checkpoint_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS says so only then."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if (tmp_path / "train/latest").exists():
            raise FULL
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StageFailed, match=r"the last checkpoint \(step 5\) is whole"):
            trained_by(work_in(tmp_path))
    whole_at(tmp_path, 5)
    assert trained_by(work_in(tmp_path)).steps == 24


def test_another_trouble_with_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn(Tones):
        def read(self, audio: str) -> Any:
            raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="the disk is broken"):
        trained_by(reading(work_in(tmp_path), Torn()))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, "stage train is not recorded; free some space or enlarge the claim"),
        (StageFailed("step 3: none of its audio could be decoded"), "none of its audio could be decoded"),
        (Diverged("step 3: loss is nan"), "step 3: loss is nan"),
    ],
)
def test_a_record_that_does_not_fit(error: StageFailed | None, line: str, disk: Path) -> None:
    """The stage's own error is not hidden by that of its record."""
    round_dir = create(disk, parse(GOOD, RoundSpec, "good"), ClusterSpec(), disk)

    def work(_: RoundDir) -> Outcome:
        round_dir.folder("train").mkdir()
        fill(disk)
        if error:
            raise error
        return Outcome(Found())

    with pytest.raises(type(error) if error else StageFailed) as caught:
        perform(Stage("train", lambda _: {}, work), round_dir)
    assert line in str(caught.value)
    assert not list(round_dir.folder("train").iterdir()), "no part of a record"


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EFBIG, "File too large"), False),
        (RuntimeError("I/O error: Permission denied (os error 13)"), False),
        (RuntimeError("(os error 281)"), False),
    ],
)
def test_what_a_full_disk_says(error: Exception, full: bool) -> None:
    assert no_space_left(error) == full


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        finally:
            assert os.statvfs(disk).f_bavail == 0


def reading(work: Work, reader: Tones) -> Work:
    object.__setattr__(work, "reader", reader)
    return work


def whole_at(folder: Path, step: int) -> None:
    found = newest_checkpoint(folder / "train/checkpoints", "test")
    assert found is not None and found.step == step
    assert not list((folder / "train/checkpoints").glob(".*")), "nothing unfinished takes space"
