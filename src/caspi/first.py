"""Imported before everything else: process 1 of a container ignores signals that it does not listen for.

For any other process, the kernel ends it at a SIGTERM. Without this, one that comes while a pod starts would be lost,
and the pod would begin to work, to be killed in the middle of it when its grace is over.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


if os.getpid() == 1:
    signal.signal(signal.SIGTERM, end)
