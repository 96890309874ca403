"""Audio inside the page: clips as data URIs, under a budget, so that the page stays one file that can be mailed."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from caspi.errors import UserError
from caspi.report.formats import size

BUDGET = 1_500_000
"""Bytes of encoded audio in one page: 2 MB of base64."""

TYPES = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".mp4": "audio/mp4",
    ".aac": "audio/aac",
    ".webm": "audio/webm",
}

Encoded = Callable[[str], tuple[bytes, str]]
"""AudioReader.encoded: the bytes as stored, and their suffix."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The sound of an example, or why there is none."""

    uri: str | None
    absent: str = ""


class Clips:
    """Embeds clips in the order in which they are asked for, until the budget is spent."""

    def __init__(self, encoded: Encoded, budget: int = BUDGET) -> None:
        self._encoded = encoded
        self._left = budget
        self.asked = 0
        self.embedded = 0
        self.bytes = 0

    def reserve(self, share: float) -> Clips:
        """A part of what is left, for a section of the page."""
        part = int(self._left * share)
        self._left -= part
        return Clips(self._encoded, part)

    def clip(self, audio: str) -> Clip:
        self.asked += 1
        try:
            data, suffix = self._encoded(audio)
        except (UserError, OSError) as error:
            return Clip(None, str(error).splitlines()[0])
        kind = TYPES.get(suffix.lower())
        if kind is None:
            return Clip(None, f"no browser plays {suffix}")
        if len(data) > self._left:
            return Clip(None, f"left out to keep this page small ({size(len(data))})")
        self._left -= len(data)
        self.embedded += 1
        self.bytes += len(data)
        return Clip(f"data:{kind};base64,{base64.b64encode(data).decode()}")
