"""Export against the way of the notes that Caspi grew out of, both in one run on the same generated clips.

    python benchmarks/export.py [--clips 600] [--json]

The reference reads the whole table with `to_pydict()`, decodes and resamples each clip with `librosa.load`, writes it
with `soundfile.write` and lists it in a JSONL. Ours are the index (the default: headers only, audio stays where it is)
and `materialise: wav`. Each way runs in a process of its own, alone; CPU seconds and peak memory are that process's,
less what its imports cost in CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

# Shares as in crowd-sourced corpora: mostly MP3, rates from 16 to 48 kHz.
FORMATS = [
    ("MP3", "MPEG_LAYER_III", 44),
    ("OGG", "VORBIS", 17),
    ("WAV", "PCM_16", 15),
    ("FLAC", "PCM_16", 15),
    ("OGG", "OPUS", 9),
]
RATES = (16_000, 22_050, 44_100, 48_000)
MEGABYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    parser.add_argument("--only", choices=[*WAYS, "make"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "make":
        payload = make_clips(arguments.folder / "clips.parquet", arguments.clips, group=100)
        make_clips(arguments.folder / "test.parquet", 2, group=100)
        make_large_group(arguments.folder / "large.parquet")
        print(json.dumps({"payload": payload}))
        return
    if arguments.only:
        print(json.dumps(_measured(WAYS[arguments.only], arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Made in a process of its own, too: the peak memory of a parent counts for its children.
        payload = _alone("make", folder, "--clips", str(arguments.clips))["payload"]
        runs = {
            name: _alone(name, folder)
            for name in ("reference", "index", "materialise", "large_group", "pool", "nothing")
        }
    figures = _figures(runs, arguments.clips, payload)
    print(json.dumps(figures, indent=1) if arguments.json else _table(figures))


def make_clips(path: Path, clips: int, group: int) -> int:
    """Speech-like noise, mean 5.5 s, as Hugging Face Parquet. Returns the bytes of encoded audio."""
    rng = np.random.default_rng(0)
    formats = [(name, subtype) for name, subtype, share in FORMATS for _ in range(share)]
    rows = []
    for number in range(clips):
        container, subtype = formats[number * 37 % 100]
        rate = 48_000 if subtype == "OPUS" else RATES[number % len(RATES)]
        seconds = float(np.clip(rng.gamma(3.0, 5.5 / 3.0), 0.8, 28.0))
        encoded = io.BytesIO()
        soundfile.write(encoded, speech_like(rng, seconds, rate), rate, format=container, subtype=subtype)
        text = f"{number} " + "מילה ועוד מילה " * max(1, round(seconds / 1.5))
        rows.append(
            {
                "audio": {"bytes": encoded.getvalue(), "path": f"{number}.{container.lower()}"},
                "text": text.strip(),
                "speaker": f"s{number % 50}",
            }
        )
    schema = pa.schema(
        [
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("text", pa.string()),
            ("speaker", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return sum(len(row["audio"]["bytes"]) for row in rows)


def make_large_group(path: Path, clips: int = 1200) -> None:
    """One row group of about 370 MB: 48 kHz WAV clips of 3.2 s."""
    rng = np.random.default_rng(1)
    clip = io.BytesIO()
    soundfile.write(clip, speech_like(rng, 3.2, 48_000), 48_000, format="WAV", subtype="PCM_16")
    rows = [
        {"audio": {"bytes": clip.getvalue(), "path": None}, "text": f"מילה ועוד מילה {number}", "speaker": str(number)}
        for number in range(clips)
    ]
    # Pages of 1 MB, as writers make them that cut by size; a page is what Arrow has to hold.
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=clips, use_dictionary=False, write_batch_size=4)


def speech_like(rng: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """Noise with the slope and the syllables of speech, so that codecs have as much to do."""
    samples = int(seconds * rate)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / rate)
    shaped = np.fft.irfft(spectrum / (1 + (hertz / 500) ** 1.5), samples)
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(samples) / rate)
    voice = shaped * syllables
    return (0.5 * voice / np.abs(voice).max()).astype(np.float32)


def reference(folder: Path) -> Callable[[], int]:
    """The way of the notes, with its text rules as written."""
    import librosa

    def clean(text: str) -> str:
        text = re.sub(r"<\|[\d.]+\|>", "", text)
        text = re.sub(r"[\u0591-\u05C7]", "", text)
        text = re.sub(r"([.,!?;:])\\1+", r"\\1", text)
        return " ".join(text.split()).strip()

    def run() -> int:
        out = folder / "reference"
        out.mkdir()
        columns = pq.read_table(folder / "clips.parquet").to_pydict()
        lines = []
        for number, (audio, text) in enumerate(zip(columns["audio"], columns["text"], strict=True)):
            samples, rate = librosa.load(io.BytesIO(audio["bytes"]), sr=16_000)
            if not 0.5 <= len(samples) / rate <= 30 or not (text := clean(text)):
                continue
            wav = out / f"{number}.wav"
            soundfile.write(wav, samples, rate)
            lines.append(
                json.dumps({"audio": str(wav), "text": f"language Hebrew<asr_text>{text}"}, ensure_ascii=False)
            )
        (out / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return len(lines)

    librosa.load(io.BytesIO(_first_clip(folder)), sr=16_000)  # its lazy imports are not what is measured
    return run


def index(folder: Path, table: str = "clips.parquet", materialise: bool = False, name: str = "") -> Callable[[], int]:
    """The export stage itself: digests, index, split, manifests, ledger."""
    import caspi.stages.export as export
    from caspi.records.results import ExportResults
    from caspi.records.round_dir import create
    from caspi.spec import ClusterSpec, RoundSpec, parse

    export.cores = lambda: 1  # CPU seconds a core
    name = name or f"{Path(table).stem}-{'wav' if materialise else 'index'}"
    values = {
        "round": name,
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {
            "sources": [{"name": "clips", "path": ".", "files": table}],
            "text": "hebrew-2",
            "materialise": "wav" if materialise else None,
        },
        "train": {"global_batch": 8, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-4}}]},
        "benchmark": {"sets": [{"name": "none", "path": ".", "files": "test.parquet"}]},
    }
    round_dir = create(folder / "runs", parse(values, RoundSpec, "benchmark"), ClusterSpec(), folder)

    if name != "warm":
        index(folder, "test.parquet", name="warm")()  # first calls import and build tables: not what is measured

    def run() -> int:
        outcome = export.work(round_dir)
        assert isinstance(outcome.results, ExportResults)
        return outcome.results.sources[0].read

    return run


def pool(folder: Path) -> Callable[[], int]:
    """Materialising over two worker processes; reports the peak of a worker."""
    import caspi.stages.export as export

    run = index(folder, materialise=True, name="pool")
    export.cores = lambda: 2
    return run


def nothing(folder: Path) -> Callable[[], int]:
    """What Python and our imports take before any work."""
    index(folder)
    return lambda: 0


WAYS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "reference": reference,
    "index": index,
    "materialise": lambda folder: index(folder, materialise=True),
    "large_group": lambda folder: index(folder, "large.parquet"),
    "pool": pool,
    "nothing": nothing,
}


def _measured(way: Callable[[Path], Callable[[], int]], folder: Path) -> dict[str, float]:
    run = way(folder)
    workers = _WorkersPeak()
    workers.start()
    cpu, wall = time.process_time(), time.perf_counter()
    rows = run()
    return {
        "rows": rows,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE,
        "worker_peak_megabytes": workers.megabytes,
    }


class _WorkersPeak(threading.Thread):
    """Watches the peak memory of the child processes: once they are gone, only an upper bound is left."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0

    def run(self) -> None:
        while True:
            for child in multiprocessing.active_children():
                with contextlib.suppress(OSError):
                    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
                    self.megabytes = max(self.megabytes, int(peak[1]) / 1024 if peak else 0.0)
            time.sleep(0.05)


def _alone(name: str, folder: Path, *more: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--folder", str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _first_clip(folder: Path) -> bytes:
    batch = next(pq.ParquetFile(folder / "clips.parquet").iter_batches(1, columns=["audio"]))
    data: bytes = batch.column("audio")[0]["bytes"].as_py()
    return data


def _figures(runs: dict[str, dict[str, float]], clips: int, payload: float) -> dict[str, float]:
    each = {name: run["cpu_seconds"] / max(1.0, run["rows"]) * 1000 for name, run in runs.items()}
    return {
        "clips": clips,
        "payload_megabytes": round(payload / MEGABYTE, 1),
        **{f"{name}_ms_a_clip": round(each[name], 3) for name in ("reference", "index", "materialise", "large_group")},
        "index_times_reference": round(each["reference"] / each["index"], 1),
        "materialise_times_reference": round(each["reference"] / each["materialise"], 2),
        "two_workers_times_one_by_the_clock": round(
            runs["materialise"]["wall_seconds"] / runs["pool"]["wall_seconds"], 2
        ),
        **{f"{name}_peak_megabytes": round(runs[name]["peak_megabytes"]) for name in runs},
        "worker_peak_megabytes": round(runs["pool"]["worker_peak_megabytes"]),
    }


def _table(figures: dict[str, float]) -> str:
    head = (
        f"{figures['clips']:.0f} clips, {figures['payload_megabytes']} MB; CPU ms a clip, peak MB, times the reference"
    )
    lines = [
        f"  {name:<12}{figures[f'{name}_ms_a_clip']:8.3f}{figures[f'{name}_peak_megabytes']:8.0f}{times}"
        for name, times in (
            ("reference", "     1.0"),
            ("index", f"{figures['index_times_reference']:8.1f}"),
            ("materialise", f"{figures['materialise_times_reference']:8.2f}"),
            ("large_group", "          (index of one row group of 370 MB)"),
        )
    ]
    lines += [
        f"  {'nothing':<20}{figures['nothing_peak_megabytes']:8.0f}          (imports alone)",
        f"  {'a worker':<20}{figures['worker_peak_megabytes']:8.0f}          (of two that materialise; by the clock "
        f"{figures['two_workers_times_one_by_the_clock']} times as fast as one, their start included)",
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
