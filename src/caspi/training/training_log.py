"""training_log.csv: a row for each score on dev, for a spreadsheet: epoch, train_loss, eval_loss, eval_wer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from caspi.files import write_text
from caspi.records.metrics import metric_lines

COLUMNS = "epoch,train_loss,eval_loss,eval_wer"


def write_training_log(metrics: Path) -> None:
    """Beside metrics.jsonl, from what stands in it: so a resumed run has the log of an uninterrupted one."""
    write_text(metrics.with_name("training_log.csv"), training_log(metric_lines(metrics)))


def training_log(lines: Iterable[Mapping[str, Any]]) -> str:
    """train_loss is the mean of the steps logged since the row before; empty where there is none."""
    rows, losses = [COLUMNS], list[float]()
    for line in lines:
        if line["kind"] == "train":
            losses.append(line["loss"])
        elif line["kind"] == "dev":
            train_loss = f"{fmean(losses):.4f}" if losses else ""
            rows.append(f"{line['epoch']:g},{train_loss},{line['loss']:.4f},{line['wer']:.4f}")
            losses = []
    return "\n".join(rows) + "\n"
