"""Tiny corpora, made on the fly: tones as speech, in every format and layout that the export reads."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse

SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "MP3": "MPEG_LAYER_III", "OGG": "VORBIS", "OPUS": "OPUS"}


def tone(seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray | None = None, kind: str = "WAV", rate: int = 16_000, subtype: str = "") -> bytes:
    out = io.BytesIO()
    container = "OGG" if kind == "OPUS" else kind
    samples = tone(rate=rate) if samples is None else samples
    soundfile.write(out, samples, rate, format=container, subtype=subtype or SUBTYPES[kind])
    return out.getvalue()


def rows(count: int, people: int = 10, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Rows as Hugging Face has them, each with its own text and tone."""
    return [
        {
            "audio": {"bytes": encoded(tone(seconds, hertz=200 + n)), "path": f"{n}.wav"},
            "text": f"utterance number {n}",
            "speaker": f"s{n % people}",
            "recording": f"r{n % (2 * people)}",
        }
        for n in range(count)
    ]


def write_parquet(path: Path, table_rows: Sequence[Mapping[str, Any]], group: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(table_rows)), path, row_group_size=group)
    return path


def write_arrow(path: Path, table_rows: Sequence[Mapping[str, Any]], stream: bool = True, group: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(table_rows))
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    return path


def write_jsonl(folder: Path, table_rows: Sequence[Mapping[str, Any]], name: str = "train.jsonl") -> Path:
    """The upstream format, audio in files beside it."""
    lines = []
    for row in table_rows:
        wav = folder / "wavs" / row["audio"]["path"]
        wav.parent.mkdir(parents=True, exist_ok=True)
        wav.write_bytes(row["audio"]["bytes"])
        lines.append(json.dumps({"audio": f"wavs/{wav.name}", "text": f"language Hebrew<asr_text>{row['text']}"}))
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_tsv(folder: Path, table_rows: Sequence[Mapping[str, Any]], name: str = "validated.tsv") -> Path:
    """A Common Voice folder: client_id, path, sentence; audio under clips/."""
    lines = ["client_id\tpath\tsentence"]
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for row in table_rows:
        (folder / "clips" / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
        lines.append(f"{row['speaker']}\t{row['audio']['path']}\t{row['text']}")
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_round(folder: Path, name: str = "r", **data: Any) -> RoundDir:
    """A round whose files lie under `folder`; `data` goes into its data part. The test set is made when missing."""
    if not (folder / "test" / "test.parquet").exists():
        write_parquet(folder / "test" / "test.parquet", rows(4))
    values = {
        "round": name,
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {"sources": [{"name": "crowd", "path": "crowd"}], "split": {"eval": 0.2}} | data,
        "train": {"global_batch": 8, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-4}}]},
        "benchmark": {"sets": [{"name": "test", "path": "test"}]},
    }
    return create(folder / "runs", parse(values, RoundSpec, "round"), ClusterSpec(), folder)
