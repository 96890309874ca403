"""Reading and decoding many clips, in stretches that processes and machines can share."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from caspi.audit.leakage import Fingerprint, fingerprint
from caspi.audit.signals import Signals, measure
from caspi.corpus.audio import AudioError, AudioReader, decode
from caspi.corpus.manifest import Utterance
from caspi.corpus.workers import cores
from caspi.files import atomic, json_line, read_json_lines

SHORTEST, LONGEST, STRETCHES = 64, 1024, 1024
"""Clips of a stretch, and how many stretches there are where their length allows it."""
SERIAL = 1000
"""Below so many clips, starting another process takes longer than it saves."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What was found out about the audio of one utterance."""

    digest: bytes | None
    """Of the encoded bytes; None when there are none to be read."""
    signals: Signals | None = None
    """None when it was not decoded, or could not be."""
    fingerprint: Fingerprint | None = None
    problem: str | None = None
    """Why it could not be decoded."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Utterances that are read one after the other: (id, audio, whether it is decoded)."""

    clips: Sequence[tuple[str, str, bool]]
    part: Path
    """Where what was heard is written."""


def stretches(utterances: Sequence[Utterance], decoded: Collection[str], folder: Path) -> dict[str, Stretch]:
    """All utterances in stretches, by the names of their parts in `folder`: the same on every machine."""
    ordered = sorted(utterances, key=lambda utterance: _place(utterance.audio))
    length = min(LONGEST, max(SHORTEST, -(-len(ordered) // STRETCHES)))
    found = {}
    for number, start in enumerate(range(0, len(ordered), length)):
        name = f"{number:05d}.jsonl"
        clips = [(one.id, one.audio, one.id in decoded) for one in ordered[start : start + length]]
        found[name] = Stretch(clips, folder / name)
    return found


def processes_for(decoded: int) -> int:
    """How many processes of this machine decode so many clips."""
    return min(cores(), 1 + decoded // SERIAL)


def listen(reader: AudioReader, stretch: Stretch) -> int:
    """Read every utterance of a stretch, decode those that are to be, and write its part. Returns how many."""
    with atomic(stretch.part) as file:
        for name, audio, decoded in stretch.clips:
            file.write(json_line(_stored(name, _hear(reader, audio, decoded))))
    return len(stretch.clips)


def read_heard(part: Path) -> Iterator[tuple[str, Heard]]:
    """Id and findings of each utterance of a part, exactly as they were measured."""
    for line in read_json_lines(part):
        prints, signals = line["fingerprint"], line["signals"]
        yield (
            line["id"],
            Heard(
                digest=None if line["digest"] is None else bytes.fromhex(line["digest"]),
                signals=None if signals is None else Signals(*signals),
                fingerprint=None if prints is None else np.frombuffer(b64decode(prints), np.float16),
                problem=line["problem"],
            ),
        )


def _stored(name: str, heard: Heard) -> dict[str, object]:
    return {
        "id": name,
        "digest": None if heard.digest is None else heard.digest.hex(),
        "signals": None if heard.signals is None else list(astuple(heard.signals)),
        "fingerprint": None if heard.fingerprint is None else b64encode(heard.fingerprint.tobytes()).decode(),
        "problem": heard.problem,
    }


def _place(audio: str) -> tuple[str, int, str]:
    """Sorts rows of a table by number, so that reading is a stream: `#9` before `#10`."""
    file, _, row = audio.rpartition("#")
    return file, len(row), row


def _hear(reader: AudioReader, audio: str, decoded: bool) -> Heard:
    try:
        data, _ = reader.encoded(audio)
    except AudioError as error:
        return Heard(digest=None, problem=str(error.problems[0]))
    digest = hashlib.sha256(data).digest()
    if not decoded:
        return Heard(digest)
    try:
        clip = decode(data, audio)
    except AudioError as error:
        return Heard(digest, problem=str(error.problems[0]))
    return Heard(digest, measure(clip), fingerprint(clip))
