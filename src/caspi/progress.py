"""Progress on long work: a live bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm


class _Lines(io.TextIOBase):
    """What a log gets: each state of a bar on a line of its own."""

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            sys.stderr.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


LOG_SECONDS = 15.0  # a log is read later: a line now and then is enough


def progress(title: str, total: int | None, unit: str, *, initial: int = 0, quiet: bool = False) -> tqdm[Any]:
    """A bar with rate and time left. Call `.update(n)`, and `.set_postfix_str("loss 1.2")` for facts."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=f"{title:<9}",
        unit=f" {unit}",
        disable=quiet,
        file=sys.stderr if live else _Lines(),
        ascii=not live,
        ncols=None if live else 100,
        mininterval=0.2 if live else LOG_SECONDS,
        maxinterval=1.0 if live else LOG_SECONDS,
        dynamic_ncols=live,
        smoothing=0.1,
    )
