"""Several training processes in one test: forked, so that nothing is imported twice, and joined by gloo."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, for seconds: here once, not in every process

torch.set_num_threads(1)  # a pool of OpenMP threads does not survive a fork
FORK = multiprocessing.get_context("fork")


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """What `function(*arguments)` returns on each of `world_size` processes, by rank."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        children = [
            FORK.Process(target=_rank, args=(rank, world_size, port, folder, function, arguments))
            for rank in range(world_size)
        ]
        for child in children:
            child.start()
        try:
            return _answers(folder, children, time.monotonic() + timeout)
        finally:
            for child in children:
                child.kill()
                child.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(folder: Path, children: list[Any], deadline: float) -> list[Any]:
    """All answers, or the first failure: the other ranks wait forever for one that failed."""
    found: dict[int, Any] = {}
    while len(found) < len(children):
        for rank, child in enumerate(children):
            if rank in found:
                continue
            gone = not child.is_alive()
            if (folder / str(rank)).exists():
                fine, found[rank] = pickle.loads((folder / str(rank)).read_bytes())
                assert fine, f"rank {rank}: {found[rank]}"
            else:
                assert not gone, f"rank {rank} ended with {child.exitcode} and no answer"
        assert time.monotonic() < deadline, f"no answer from {sorted(set(range(len(children))) - set(found))}"
        time.sleep(0.02)
    return [found[rank] for rank in range(len(children))]


def _rank(rank: int, world_size: int, port: int, folder: Path, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    faulthandler.dump_traceback_later(50)
    try:
        answer = (True, function(*arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    (folder / f"{rank}.part").write_bytes(pickle.dumps(answer))
    (folder / f"{rank}.part").rename(folder / str(rank))
    os._exit(0)
