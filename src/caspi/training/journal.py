"""What a run says while it trains: metrics.jsonl, trackers, the bar, training_log.csv. The leader alone writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspi.progress import progress
from caspi.records.metrics import metric_lines
from caspi.records.results import AverageScore, DevScore, TrainWarning
from caspi.spec import ClusterSpec, RoundSpec
from caspi.tracking import Metrics, Tracking
from caspi.training.clock import Clock
from caspi.training.distributed import Processes
from caspi.training.training_log import write_training_log
from caspi.training.watch import Watch

LOGGED_STEPS = 2000  # about how many lines of metrics.jsonl a run has, however long it is


class Journal:
    """Every process keeps one, so that all see the same warnings; on all but the leader it is silent."""

    def __init__(
        self,
        spec: RoundSpec,
        cluster: ClusterSpec,
        folder: Path,
        ranks: Processes,
        *,
        watch: Watch,
        clock: Clock,
        step: int,
        total: int,
        spent: float,
    ) -> None:
        """Go on after `step` of `total`, which took `spent` seconds so far."""
        self.watch, self.clock, self.spent = watch, clock, spent
        self.total, self.every = total, max(1, total // LOGGED_STEPS)
        self.metrics = Metrics(folder / "metrics.jsonl", step) if ranks.leader else None
        trackers = cluster.track if ranks.leader else []
        self.tracking = Tracking(trackers, folder, spec.round, spec.model_dump(mode="json"))
        self.bar = progress("train", total, "steps", initial=step, quiet=not ranks.leader)
        self.loss: float | None = None
        self.wer: float | None = None

    def seconds(self) -> float:
        """Spent on training in all, interrupted runs included."""
        return round(self.spent + self.clock.seconds(), 3)

    def stepped(self, step: int, loss: float, norm: float, values: Mapping[str, Any], last: bool) -> None:
        """A step was taken; `last` of its phase. Raises Diverged on a spike that the round does not bear."""
        self.loss = loss
        self.bar.update(1)
        self.warn(self.watch.after_step(step, loss, norm))
        if step % self.every and not last:
            return
        speed, waited = self.clock.window()
        pace = {"utterances_per_second": round(speed, 2), "waited": round(waited, 4), "seconds": self.seconds()}
        self.write({"kind": "train", "step": step, "steps": self.total, **values, **pace})
        self._show()

    def scored(self, dev: Sequence[DevScore], phase: str) -> None:
        """The last of `dev` is new."""
        self.wer = dev[-1].wer
        self.write({"kind": "dev", **dev[-1].model_dump(), "phase": phase, "seconds": self.seconds()})
        self._show()
        if self.metrics:
            write_training_log(self.metrics.path)
        self.warn(self.watch.after_score(dev))

    def averaged(self, score: AverageScore) -> None:
        """Once, however often the end of the run is run again."""
        if self.metrics and not any(line["kind"] == "average" for line in metric_lines(self.metrics.path)):
            self.write({"kind": "average", **score.model_dump(), "seconds": self.seconds()})
            self._say(f"the average of {len(score.of)} checkpoints: WER {score.wer:.1%}")

    def warn(self, warnings: Sequence[TrainWarning]) -> None:
        for warning in warnings:
            self.write({"kind": "warning", **warning.model_dump(), "seconds": self.seconds()})
            self._say(f"warning: step {warning.step}: {warning.message}")

    def write(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, with its kind and step."""
        if self.metrics:
            self.metrics.write(values)
            kind = values["kind"]
            named = {f"{kind}/{name}": value for name, value in values.items() if name not in ("kind", "step", "steps")}
            self.tracking.log(named, values["step"])

    def close(self) -> None:
        self.bar.close()
        self.tracking.close()
        if self.metrics:
            self.metrics.close()

    def _show(self) -> None:
        loss = f"loss {self.loss:.3f}  " if self.loss is not None else ""
        wer = f"WER {self.wer:.1%}  " if self.wer is not None else ""
        self.bar.set_postfix_str(f"{loss}{wer}{self.clock.speed:.1f} utt/s", refresh=False)

    def _say(self, text: str) -> None:
        if self.metrics:
            self.bar.write(text, file=sys.stderr)
