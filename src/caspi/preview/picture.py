"""A spectrogram as a PNG: a pixel a bin and a frame, low bins at the bottom, what the model does not see in grey."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

HIDDEN = 255  # the palette's last colour
_ANCHORS = ((8, 8, 24), (66, 24, 104), (152, 44, 108), (226, 92, 70), (250, 172, 60), (252, 250, 210))
_GREY = (150, 156, 166)


def data_uri(features: npt.NDArray[np.float32], hidden: npt.NDArray[np.bool_], low: float, high: float) -> str:
    """[bins, frames] between `low` (dark) and `high` (light) as a data: address."""
    scaled = (features - low) / max(high - low, 1e-9)
    pixels = np.clip(scaled * (HIDDEN - 1), 0, HIDDEN - 1).astype(np.uint8)
    pixels[hidden] = HIDDEN
    return f"data:image/png;base64,{base64.b64encode(png(pixels[::-1])).decode()}"


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """[rows, columns] of palette indices as a PNG file (RFC 2083)."""
    rows, columns = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", _palette()),
            _chunk(b"IDAT", zlib.compress(raw, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _palette() -> bytes:
    places = np.linspace(0, len(_ANCHORS) - 1, HIDDEN)
    anchors = np.array(_ANCHORS, dtype=np.float64)
    ramp = np.stack([np.interp(places, np.arange(len(anchors)), anchors[:, part]) for part in range(3)], axis=1)
    return np.vstack([ramp, _GREY]).round().astype(np.uint8).tobytes()
