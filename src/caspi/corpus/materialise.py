"""Audio as 16 kHz WAV files, for tools that want files: decoded and resampled once, on all cores."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from caspi.corpus.audio import SAMPLE_RATE, AudioError, AudioReader, Clip
from caspi.corpus.workers import spread

CLIPS_A_TASK = 128
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A clip to write."""

    source: str
    number: int
    """Source and number of the utterance, for the answer."""
    audio: str
    wav: Path


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a clip."""

    source: str
    number: int
    seconds: float
    dropped: str | None = None
    """The reason for the ledger, when it turned out not to be decodable."""


def materialise(clips: Iterable[Wanted], roots: Mapping[str, Path], processes: int) -> Iterator[list[Written]]:
    """Write each clip that is not there yet, atomically. Results come in batches, in any order."""
    yield from spread(partial(_write_clips, AudioReader(roots)), _chunks(clips), processes)


def write_wav(path: Path, clip: Clip) -> None:
    """16-bit PCM, mono, 16 kHz. Complete or absent after a kill."""
    samples = np.clip(np.rint(clip * 32768.0), -32768, 32767).astype("<i2").tobytes()
    header = _HEADER.pack(
        b"RIFF",
        36 + len(samples),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        SAMPLE_RATE,
        2 * SAMPLE_RATE,
        2,
        16,
        b"data",
        len(samples),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one writer a clip: a rerun takes over what a kill left
    temporary.write_bytes(header + samples)
    temporary.replace(path)


def _write_clips(reader: AudioReader, clips: Sequence[Wanted]) -> list[Written]:
    return [_write_clip(reader, clip) for clip in clips]


def _write_clip(reader: AudioReader, clip: Wanted) -> Written:
    samples = _samples_there(clip.wav)
    if samples is None:
        try:
            decoded = reader.read(clip.audio)
        except AudioError as error:
            return Written(clip.source, clip.number, 0.0, error.reason)
        write_wav(clip.wav, decoded)
        samples = len(decoded)
    return Written(clip.source, clip.number, samples / SAMPLE_RATE)


def _samples_there(path: Path) -> int | None:
    """Samples of a WAV that an earlier run wrote; None when there is none, or a power cut left it short."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            size = file.seek(0, 2)
    except FileNotFoundError:
        return None
    if len(head) < _HEADER.size:
        return None
    length: int = _HEADER.unpack(head)[-1]
    return length // 2 if size == _HEADER.size + length else None


def _chunks(clips: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """In order, so that a worker reads its stretch of a table as a stream."""
    supply = iter(clips)
    while chunk := list(islice(supply, CLIPS_A_TASK)):
        yield chunk
