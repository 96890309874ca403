"""Speech from espeak-ng, made to sound like a phone or a studio, and encoded as people upload it."""

from __future__ import annotations

import io
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

Samples = npt.NDArray[np.float64]

ESPEAK_RATE = 22_050


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice variant of espeak-ng at one pitch."""

    variant: str
    pitch: int

    @property
    def name(self) -> str:
        return f"{self.variant.lower()}-p{self.pitch}"


@dataclass(frozen=True, slots=True)
class Codec:
    """How a clip is stored: what soundfile needs, and the suffix that people see."""

    suffix: str
    format: str
    subtype: str
    rate: int
    compression: float | None = None


def speak(phonemes: list[str], speaker: Speaker, words_per_minute: int) -> Samples:
    """The phonemes of each word, one after the other, at ESPEAK_RATE, with the silence around them cut off."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-v", f"he+{speaker.variant}", "-p", str(speaker.pitch), "-s", str(words_per_minute)]
        subprocess.run([*command, "-w", str(path), " ".join(f"[[{word}]]" for word in phonemes)], check=True)
        samples, rate = sf.read(path)
    assert rate == ESPEAK_RATE, f"espeak-ng spoke at {rate} Hz"
    loud = np.flatnonzero(np.abs(samples) > 0.004)
    assert loud.size, f"espeak-ng knows no such phonemes: {phonemes}"
    return samples[loud[0] : loud[-1] + 1]


def studio(speech: Samples, random: np.random.Generator) -> Samples:
    """A good microphone: a little room before and after, hardly any noise."""
    return _level(_noisy(_pad(speech, random), random.uniform(36, 46), random), random.uniform(0.5, 0.9))


def phone(speech: Samples, random: np.random.Generator) -> Samples:
    """A phone: some are band-limited like a phone line, some noisy, at all sorts of levels."""
    samples = _pad(speech, random)
    if random.random() < 0.8:
        samples = _noisy(samples, random.uniform(14, 30), random)
    if random.random() < 0.4:
        samples = _band(samples, random.uniform(150, 300), random.uniform(3_300, 3_800))
    return _level(samples, random.uniform(0.2, 0.95))


def encode(samples: Samples, codec: Codec) -> bytes:
    """The clip as a file. The same samples give the same bytes."""
    file = io.BytesIO()
    resampled = soxr.resample(samples, ESPEAK_RATE, codec.rate, quality="VHQ")
    sf.write(
        file,
        np.clip(resampled, -1, 1),
        codec.rate,
        format=codec.format,
        subtype=codec.subtype,
        compression_level=codec.compression,
    )
    data = file.getvalue()
    return _with_fixed_serial(data) if codec.format == "OGG" else data


def decode(data: bytes) -> Samples:
    """Back to samples at ESPEAK_RATE."""
    samples, rate = sf.read(io.BytesIO(data))
    return soxr.resample(samples, rate, ESPEAK_RATE, quality="VHQ")


def _pad(speech: Samples, random: np.random.Generator) -> Samples:
    before, after = (np.zeros(int(random.uniform(0.03, 0.12) * ESPEAK_RATE)) for _ in range(2))
    return np.concatenate([before, speech, after])


def _noisy(samples: Samples, snr: float, random: np.random.Generator) -> Samples:
    """Add noise that falls with frequency, as rooms and streets do."""
    spectrum = np.fft.rfft(random.standard_normal(samples.size))
    frequency = np.fft.rfftfreq(samples.size, 1 / ESPEAK_RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 60)), samples.size)
    return samples + noise * np.std(samples) / np.std(noise) / 10 ** (snr / 20)


def _band(samples: Samples, low: float, high: float) -> Samples:
    frequency = np.fft.rfftfreq(samples.size, 1 / ESPEAK_RATE)
    gain = 1 / np.sqrt(1 + (low / np.maximum(frequency, 1)) ** 8) / np.sqrt(1 + (frequency / high) ** 16)
    return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size)


def _level(samples: Samples, peak: float) -> Samples:
    return samples * peak / np.max(np.abs(samples))


def _with_fixed_serial(data: bytes) -> bytes:
    """libsndfile numbers each Ogg stream by the clock; number them all 1 and sum the pages anew."""
    pages, start = bytearray(data), 0
    while start < len(pages):
        segments = pages[start + 26]
        end = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        pages[start + 14 : start + 18] = (1).to_bytes(4, "little")
        pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _ogg_checksum(pages[start:end]).to_bytes(4, "little")
        start = end
    return bytes(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 of RFC 3533: polynomial 0x04c11db7, not reflected, starting from 0."""
    checksum = 0
    for byte in page:
        checksum = ((checksum << 8) & 0xFFFFFFFF) ^ _OGG_TABLE[(checksum >> 24) ^ byte]
    return checksum


def _ogg_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = ((value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table


_OGG_TABLE = _ogg_table()
