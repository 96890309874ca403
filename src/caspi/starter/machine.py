"""The GPUs of this machine, as the cluster file names them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpus:
    """One kind of GPU."""

    product: str
    mebibytes: int


def gpus_here() -> Gpus | None:
    """The first GPU that nvidia-smi lists; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        name, _, memory = run.stdout.splitlines()[0].rpartition(",")
        return Gpus(name.strip().replace(" ", "-"), int(memory))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
