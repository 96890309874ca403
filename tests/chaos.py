"""Kill -9 a round again and again, at random points of every stage, run it again, and compare with the undisturbed one.

python tests/chaos.py                    # needs `make demo` to have run; about 8 minutes
python tests/chaos.py --kills 5 --seed 1 # fewer, at other points
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path

from caspi.execution.local import stages_of
from caspi.files import file_digest, folder_digest
from caspi.records.record import STAGES
from caspi.records.round_dir import RoundDir, find_round

ROUND, PARENT = "demo-r2", "demo-r1"
# How often each stage is hit: training is where the time goes, and what has most to lose.
SHARES = {"export": 3, "audit": 4, "train": 20, "benchmark": 3, "compare": 2, "report": 2}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=sum(SHARES.values()))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--runs", type=Path, default=Path("runs"))
    chosen = arguments.parse_args()
    rng = random.Random(chosen.seed)

    undisturbed, parent = find_round(chosen.runs, ROUND), find_round(chosen.runs, PARENT)
    lengths = {stage: _seconds(undisturbed, stage) for stage in STAGES}
    targets = sorted(_targets(chosen.kills), key=STAGES.index)
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) / "runs"
        shutil.copytree(parent.path, runs / parent.path.name)
        hits: Counter[str] = Counter()
        for number, stage in enumerate(targets, start=1):
            # Training goes on from its checkpoints, so each kill comes early enough to leave work for the next.
            most = lengths[stage] * (0.3 if stage == "train" else 0.9)
            hit, after = _run_and_kill(runs, stage, rng.uniform(0, most), rng)
            hits[hit] += 1
            print(f"kill {number:2} of {len(targets)}: in {hit}, {after:.1f} s after {stage} began", flush=True)
        subprocess.run(_command(runs), check=True)
        faults = _differences(undisturbed, find_round(runs, ROUND))
    print(f"killed {sum(hits.values())} times: {dict(hits)}")
    for fault in faults:
        print(f"DIFFERS {fault}")
    missed = set(stages_of(undisturbed)) - set(hits)
    if missed and chosen.kills >= sum(SHARES.values()):
        faults.append(f"never hit: {missed}")
        print(f"never hit: {missed}")
    print("the same records, the same model" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


def _targets(kills: int) -> list[str]:
    every = [stage for stage, share in SHARES.items() for _ in range(share)]
    return [every[index * len(every) // kills] for index in range(kills)]


def _command(runs: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "caspi",
        "run",
        f"rounds/{ROUND}.yaml",
        "--cluster",
        "clusters/laptop.yaml",
        "--runs",
        str(runs),
    ]


def _run_and_kill(runs: Path, stage: str, delay: float, rng: random.Random) -> tuple[str, float]:
    """Start the round, wait for `stage` to begin, wait `delay` seconds, kill -9. Returns the stage that was hit."""
    process = subprocess.Popen(_command(runs), stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr
    begun, reached, said = threading.Event(), [""], deque[str](maxlen=20)

    def watch() -> None:
        for line in process.stderr or ():
            said.append(line)
            if line.startswith("[") and "]" in line:
                reached[0] = line.split("]")[1].strip()
                if reached[0] == stage:
                    begun.set()
        begun.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun.wait()
    start = time.monotonic()
    while time.monotonic() - start < delay and process.poll() is None and reached[0] == stage:
        time.sleep(0.01)
    after = time.monotonic() - start
    if process.poll() is not None:
        watcher.join(5)
        raise SystemExit(
            f"the round ended by itself (exit code {process.returncode}) while {stage} was to be killed; it said:\n"
            + "".join(said)
        )
    victims = [process.pid, *_children(process.pid)]
    for pid in victims if rng.random() < 0.5 else victims[:1]:  # the whole tree at once, or the parent alone
        _kill(pid)
    process.wait()
    return reached[0], after


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """All descendants, from /proc."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *_children(child)]
    return found


def _seconds(round_dir: RoundDir, stage: str) -> float:
    record = next(record for name in STAGES if name == stage and (record := round_dir.record(name)))
    return record.circumstances.seconds


def _differences(one: RoundDir, other: RoundDir) -> list[str]:
    found = []
    for stage in stages_of(one):
        first, second = one.succeeded(stage), other.succeeded(stage)
        if first.digest != second.digest:
            found.append(f"{stage}: record {first.digest[:12]} != {second.digest[:12]}")
        for name, sha in first.outputs.items():
            if (there := file_digest(other.folder(stage) / name)) != sha:
                found.append(f"{stage}/{name}: {sha[:12]} != {there[:12]}")
    if folder_digest(one.model) != folder_digest(other.model):
        found.append("model/: the weights differ")
    return found


if __name__ == "__main__":
    sys.exit(main())
