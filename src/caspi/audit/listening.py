"""Reading and decoding many clips, over the cores of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from caspi.audit.leakage import Fingerprint, fingerprint
from caspi.audit.signals import Signals, measure
from caspi.corpus.audio import AudioError, AudioReader, decode
from caspi.corpus.manifest import Utterance
from caspi.corpus.workers import cores, spread

CHUNK = 32
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


def listen(
    utterances: Sequence[Utterance],
    decoded: Collection[str],
    roots: Mapping[str, Path],
    on_done: Callable[[int], object] = lambda count: None,
) -> dict[str, Heard]:
    """Read every utterance, and decode those whose ids are in `decoded`. By id; `on_done` counts along."""
    ordered = sorted(utterances, key=lambda utterance: _place(utterance.audio))
    tasks = (
        [(one.id, one.audio, one.id in decoded) for one in ordered[start : start + CHUNK]]
        for start in range(0, len(ordered), CHUNK)
    )
    heard: dict[str, Heard] = {}
    work = partial(_listen, AudioReader(roots))
    for chunk in spread(work, tasks, min(cores(), 1 + len(decoded) // SERIAL)):
        heard.update(chunk)
        on_done(len(chunk))
    return heard


def _place(audio: str) -> tuple[str, int, str]:
    """Sorts rows of a table by number, so that reading is a stream: `#9` before `#10`."""
    file, _, row = audio.rpartition("#")
    return file, len(row), row


def _listen(reader: AudioReader, task: list[tuple[str, str, bool]]) -> dict[str, Heard]:
    return {name: _hear(reader, audio, decoded) for name, audio, decoded in task}


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
