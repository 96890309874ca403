"""Where metrics go: metrics.jsonl always; TensorBoard and W&B when the cluster file asks (`track`).

A tracker is a spectator. Whatever happens to one is a warning, once, and training goes on without it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from caspi.files import atomic, json_line

CLOSE_SECONDS = 30.0  # how long the end of training waits for a tracker to upload what it has


class Metrics:
    """metrics.jsonl: one line for each logged step and each evaluation. Append-only within a run."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on after `step`: lines beyond it belong to steps that are taken again, and a torn last line to none."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _until(line, step)]
            with atomic(path, "wb") as file:
                file.writelines(kept)
        self.file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        self.file.write(json_line(values))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Tracker(Protocol):
    """A place that shows curves."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """All trackers of a run, none of which can stop it."""

    def __init__(self, names: Sequence[str], folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            self._guarded(name, partial(self._open, name, folder, run, spec))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        numbers = dict(_numbers(values))
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, partial(tracker.log, numbers, step))

    def close(self) -> None:
        for name, tracker in list(self.trackers.items()):
            closing = threading.Thread(target=self._guarded, args=(name, tracker.close), daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if closing.is_alive():
                _warn(name, f"still uploading after {CLOSE_SECONDS:g} s")
        self.trackers.clear()

    def _open(self, name: str, folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        self.trackers[name] = TRACKERS[name](folder, run, spec)

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # the one catch-all: a spectator's failure, of any kind, is not ours
            self.trackers.pop(name, None)
            _warn(name, f"{type(error).__name__}: {error}")


class TensorBoard:
    """Event files under train/tensorboard."""

    def __init__(self, folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("round", f"```json\n{json.dumps(spec, indent=1, ensure_ascii=False)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A W&B run named as the round; WANDB_MODE=offline keeps it under train/wandb, to be synchronised later."""

    def __init__(self, folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "caspi"),
            name=run,
            dir=str(folder),
            config=dict(spec),
            settings=wandb.Settings(
                init_timeout=CLOSE_SECONDS, silent=True, console="off", disable_git=True, save_code=False
            ),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def _until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Flat names for numbers: {"rates": {"all": 1e-3}} is rates/all."""
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((prefix + name, float(value)))
    return flat


def _warn(name: str, what: str) -> None:
    first = what.splitlines()[0][:200]
    print(f"warning: {name} is off for the rest of this run ({first}); metrics.jsonl has everything", file=sys.stderr)
