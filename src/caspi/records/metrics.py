"""metrics.jsonl: what training logged, a line for each logged step, score, warning and forecast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines, in order; a killed run may have torn the last one. None where there is no file."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("kind"), str):
            found.append(line)
    return found
