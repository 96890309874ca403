"""What the first and last bytes of encoded audio say: its format, and whether the end is there.

Headers promise a length; a clip that was cut off while it was copied still has its header, and its transcript no
longer fits. These checks read a few bytes and find that without decoding.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_OGG_TAIL = 1 << 16  # a page is at most 65,307 bytes


def suffix_of(data: bytes) -> str:
    """The file suffix of the format of `data`, such as ".mp3"; ".bin" when unknown."""
    head = data[:12]
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return ".wav"
    if head[:4] == b"fLaC":
        return ".flac"
    if head[:4] == b"OggS":
        return ".opus" if b"OpusHead" in data[:64] else ".ogg"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return ".mp3"
    if head[:4] == b"FORM":
        return ".aiff"
    if name := foreign_format(data):
        return "." + name.split()[-1]
    return ".bin"


def foreign_format(data: bytes) -> str | None:
    """The name of a known format that libsndfile does not decode."""
    if data[4:8] == b"ftyp":
        return "MPEG-4 m4a"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "Matroska webm"
    if data[:4] == b"0&\xb2u":
        return "Windows Media wma"
    if data[:5] == b"#!AMR":
        return "AMR amr"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "ADTS aac"
    return None


def cut_short(file: BinaryIO) -> str | None:
    """What is missing at the end of a WAV, MP3 or Ogg file, in words; None when nothing is known to be missing.

    A truncated FLAC is found when it is decoded: its header holds no size in bytes.
    """
    head = file.read(4096)
    size = file.seek(0, 2)
    if head[:4] == b"RIFF":
        return _short_of(_wav_end(head), size)
    if head[:4] == b"OggS":
        file.seek(max(0, size - _OGG_TAIL))
        return _ogg_page_missing(file.read())
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _short_of(_mp3_end(file, head), size, tolerance=0.02)
    return None


def _short_of(end: int | None, size: int, tolerance: float = 0.0) -> str | None:
    if end is None or size >= end * (1 - tolerance):
        return None
    return f"{size:,} bytes of {end:,}: the end is missing; download or copy it again"


def _wav_end(head: bytes) -> int | None:
    """Where the samples of a WAV end by its header; None when the header does not say (a stream's does not)."""
    position = 12
    while position + 8 <= len(head):
        name, length = struct.unpack_from("<4sI", head, position)
        if name == b"data":
            return position + 8 + length if 0 < length < 0x7FFF0000 else None
        position += 8 + length + length % 2
    return None


def _ogg_page_missing(tail: bytes) -> str | None:
    """The last page says how long it is."""
    start = tail.rfind(b"OggS")
    if start < 0:
        return "its last page is missing; download or copy it again"
    page = tail[start:]
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is not complete; download or copy it again"
    return None


def _mp3_end(file: BinaryIO, head: bytes) -> int | None:
    """Where an MP3 ends by its Xing header, which encoders write into the first frame."""
    start = 0
    if head[:3] == b"ID3" and len(head) > 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(start)
        head = file.read(256)
    frame = head[:256]
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or len(frame) < place + 16:
        return None
    flags: int = struct.unpack_from(">I", frame, place + 4)[0]
    if not flags & 2:
        return None
    length: int = struct.unpack_from(">I", frame, place + (12 if flags & 1 else 8))[0]
    return start + length
