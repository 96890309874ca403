"""A round small enough to go through the whole pipeline in a test, and a run of it by kfp.local in its own process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from caspi.records.record import STAGES, Record
from caspi.records.round_dir import open_round, round_path
from caspi.spec import load_round
from tests.standins.corpora import encoded, rows, write_parquet

HOUSE = Path(__file__).parents[1]
CODE = """
import sys, json
from pathlib import Path
from pipelines.demo import run_pipeline
given = json.loads(sys.argv[1])
try:
    run_pipeline(*map(Path, given["places"]), retries=given["retries"], **given["parameters"])
except RuntimeError as error:
    sys.exit(f"failed: {error}")
"""


@dataclass(frozen=True, slots=True)
class Work:
    """Files of a round, and where its directory goes."""

    round: Path
    cluster: Path
    runs: Path

    @property
    def path(self) -> Path:
        return round_path(self.runs, load_round(self.round))

    def records(self) -> dict[str, Record]:
        """Those that are there, by stage."""
        round_dir = open_round(self.path)
        return {stage: record for stage in STAGES if (record := round_dir.record(stage))}

    def written(self) -> dict[str, int]:
        """When each record was written."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.path.glob("*/record.json")}

    def command(self, retries: int | None = 0, **parameters: str) -> list[str]:
        """The argv of a run of the pipeline; retries None: the committed pipeline as it is."""
        places = [self.round, self.cluster, self.runs, self.runs.parent / "artifacts"]
        given = {"places": list(map(str, places)), "retries": retries, "parameters": parameters}
        return [sys.executable, "-W", "ignore", "-c", CODE, json.dumps(given)]

    def run(self, retries: int | None = 0, **parameters: str) -> Ran:
        """Run the pipeline to its end."""
        done = subprocess.run(
            self.command(retries, **parameters),
            cwd=HOUSE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=800,
            check=False,
        )
        text = re.sub(r"\x1b\[\d+m", "", done.stdout)
        return Ran(done.returncode, re.findall(r"Executing task '([^']+)'", text), text)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run of the pipeline ended."""

    code: int
    tasks: list[str]
    """In the order that they began in."""
    text: str


def make_work(folder: Path, silent: int = 0, name: str = "small", **train: Any) -> Work:
    """A round of 60 noises, of which the audit finds `silent` ones worthless: CAUTION from 4, STOP from 12."""
    rng, made = np.random.default_rng(60), rows(60)
    for number, row in enumerate(made):
        samples = (1e-4 if number < silent else 0.1) * rng.standard_normal(16_000)
        row["audio"]["bytes"] = encoded(samples.astype(np.float32))
    write_parquet(folder / "data" / "crowd" / "a.parquet", made)
    write_parquet(folder / "data" / "test" / "a.parquet", rows(4))
    values = {
        "round": name,
        "seed": 7,
        "model": {"family": "ctc", "base": "tiny"},
        "data": {"sources": [{"name": "crowd", "path": "crowd"}], "split": {"eval": 0.2}},
        "audit": {
            "sample": {"share": 1.0, "at_least": 1},
            "proceed": {"low_quality": 0.06, "any_domain": 0.06},
            "caution": {"low_quality": 0.2, "any_domain": 0.2},
        },
        "train": {
            "global_batch": 8,
            "precision": "fp32",
            "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-4}}],
            "evaluate": {"every_steps": 100, "utterances": 4},
            "keep": {"every_steps": 3, "last": 1, "best": 1},
            **train,
        },
        "benchmark": {"sets": [{"name": "test", "path": "test"}]},
    }
    work = Work(folder / f"{name}.yaml", folder / "cluster.yaml", folder / "runs")
    work.round.write_text(yaml.safe_dump(values), encoding="utf-8")
    work.cluster.write_text(yaml.safe_dump({"data_root": str(folder / "data")}), encoding="utf-8")
    return work
