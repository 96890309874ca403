"""Training work for agents to start: slow enough to be disturbed, on a family whose steps take milliseconds.

    python -m tests.elastic_work FOLDER '{"seconds": 0.02}' [NNODES HOST:PORT]    an agent; without the last: one node

With {"wait": "name"} an agent is ready to begin, and waits until FOLDER/name is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from caspi.errors import CaspiError
from caspi.launched import die_with_agent, is_launched, tell_agent

EPOCHS, STEPS = 9, 72
TRAIN = {
    "phases": [{"name": "full", "epochs": EPOCHS, "rates": {"all": 5e-3}}],
    "evaluate": {"every_steps": 24, "utterances": 20},
    "keep": {"every_steps": 4, "last": 2, "best": 1},
}


def main(folder: str, settings: str, nnodes: str = "1", endpoint: str | None = None) -> int:
    options: dict[str, Any] = json.loads(settings)
    if not is_launched():
        return agent(folder, settings, options, nnodes, endpoint)
    die_with_agent()
    try:
        train_slowly(Path(folder), options)
    except CaspiError as error:
        tell_agent(str(error))
        return error.exit_code
    return 0


def agent(folder: str, settings: str, options: dict[str, Any], nnodes: str, endpoint: str | None) -> int:
    from caspi.execution.agent import run_agent
    from caspi.execution.nodes import meeting_for
    from caspi.spec import ClusterSpec

    processes = str(options.get("processes", 1))
    meeting = meeting_for(ClusterSpec(), nnodes, processes, endpoint, "toy", "join_timeout=60")
    assert meeting is not None
    while "wait" in options and not (Path(folder) / options["wait"]).exists():
        time.sleep(0.05)
    command = [sys.executable, "-m", "tests.elastic_work", folder, settings]
    ended = run_agent(command, meeting, options.get("restarts", 3), options.get("grace", 60))
    if ended.line:
        print(ended.line, file=sys.stderr)
    return ended.code


def train_slowly(folder: Path, options: dict[str, Any]) -> None:
    from caspi.training.distributed import processes
    from caspi.training.engine import train
    from tests.training_work import Tones, spec_of, work_in

    rank, once = int(os.environ["RANK"]), folder / "once"

    class Slowly(Tones):
        """Reads with a pause; at its 60th read it does what the test asks of this rank, once."""

        reads = 0

        def read(self, audio: str) -> Any:
            time.sleep(options.get("seconds", 0.0))
            self.reads += 1
            if options.get("rank") == rank and self.reads == 60 and not once.exists():
                once.touch()
                disturb(options["act"])
            return super().read(audio)

    spec = spec_of(**{**TRAIN, **options.get("train", {})})
    work = work_in(folder, spec=spec, cluster=options.get("cluster"))
    object.__setattr__(work, "reader", Slowly())
    latest = folder / "train" / "latest"
    with (folder / "lives").open("a") as lives:
        begins_at = int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0
        lives.write(f"{os.environ['WORLD_SIZE']} {rank} {begins_at}\n")
    with processes(options.get("hang_timeout", 60)) as ranks:
        train(work, ranks)


def disturb(act: str) -> None:
    if act == "hang":
        time.sleep(600)
    os.kill(os.getpid(), {"freeze": signal.SIGSTOP, "kill": signal.SIGKILL}[act])


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
