"""Nobody outlives a kill -9 of the one who started them: an orphan would hold files, locks and GPUs.

What has ended waits to be asked how, and holds a process id: process 1 of a container has to ask for all orphans.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere the lock file tells).

    Give `parent`, the pid that should be there, where it may be gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def bury_orphans() -> None:
    """As process 1: ask for all that have ended. Only while no child of one's own is waited for by others."""
    while os.getpid() == 1:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended == 0:
            return
