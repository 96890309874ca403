"""How long people wait for an answer: `caspi --help`, and a plan of 200,000 utterances.

python benchmarks/command_line.py [--json]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from caspi.corpus.manifest import Utterance, write_manifest
from caspi.plan import make_plan
from caspi.records.record import Circumstances, Record, write_record
from caspi.records.results import ExportResults
from caspi.records.round_dir import RoundDir, create
from caspi.spec import load_cluster, load_round

HOUSE = Path(__file__).parents[1]
UTTERANCES = 200_000


def main() -> None:
    figures = {
        "caspi --help, seconds": _median(lambda: _run("--help")),
        "python -c pass, seconds": _median(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)),
    }
    with tempfile.TemporaryDirectory() as scratch:
        round_dir = _exported(Path(scratch))
        figures[f"plan of {UTTERANCES:,} utterances, seconds"] = _median(
            lambda: make_plan(round_dir.spec, round_dir.cluster, round_dir)
        )
    if "--json" in sys.argv:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<45} {value:.3f}")


def _run(argument: str) -> None:
    subprocess.run([sys.executable, "-m", "caspi", argument], check=True, stdout=subprocess.DEVNULL)


def _median(call: object, times: int = 7) -> float:
    assert callable(call)
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return round(statistics.median(found), 4)


def _exported(folder: Path) -> RoundDir:
    """hebrew-r2 on 2 x A100, as after its export: lengths like those of crowd speech."""
    rng = np.random.default_rng(0)
    spec, cluster = load_round(HOUSE / "rounds/hebrew-r2.yaml"), load_cluster(HOUSE / "clusters/2xa100-40gb.yaml")
    round_dir = create(folder, spec, cluster, folder)
    seconds = np.clip(rng.lognormal(1.3, 0.6, UTTERANCES), 0.5, 30).round(3)
    export = round_dir.folder("export")
    write_manifest(
        export / "train.jsonl",
        (
            Utterance(
                f"crowd-recital/{i}", f"crowd-recital/data/{i // 999}.parquet#{i}", "שלום עולם " * 4, float(s),
                "crowd-recital", "read", f"r{i // 9}", f"s{i // 99}",
            )
            for i, s in enumerate(seconds)
        ),
    )  # fmt: skip
    hours = float(seconds.sum()) / 3600
    results = ExportResults(
        sources=[], sets=[], train=UTTERANCES, eval=1, train_hours=hours, eval_hours=0, text="hebrew-2"
    )
    here = Circumstances(started="", seconds=0, host="", git=None, versions={})
    record = Record(
        stage="export", status="succeeded", round=spec.round, spec=spec.digest, seed=42, inputs={},
        results=results.model_dump(), circumstances=here,
    )  # fmt: skip
    write_record(export / "record.json", record)
    return round_dir


if __name__ == "__main__":
    main()
