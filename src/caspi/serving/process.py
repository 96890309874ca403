"""A server in a process of its own, for as long as a `with` block, and never longer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from caspi.errors import StageFailed

END_SECONDS = 40.0  # the server's own grace, and a little


@contextmanager
def serve_process(model_folder: Path, *, log: Path | None = None, timeout: float = 120.0) -> Iterator[str]:
    """Serve a model folder on a free port of this machine; yields the URL when it has transcribed a first clip.

    StageFailed with the last line of its log when it ends or is not ready in `timeout` seconds. The server ends
    with the block, and also when this process is killed: its stdin is a pipe that only this process holds.
    """
    with _open(log) as output:
        # bound here and inherited: no other process can take the port in between
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            process = subprocess.Popen(
                [sys.executable, "-m", "caspi.serving.server", str(model_folder), f"--listener={listener.fileno()}"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
                process_group=0,
            )
        try:
            _wait_until_ready(process, url, output, timeout)
            yield url
        finally:
            _end(process)


def _open(log: Path | None) -> IO[bytes]:
    """The log, or a file without a name: nothing to clean up when this process is killed."""
    if log is None:
        return tempfile.TemporaryFile()
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("w+b")


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes], timeout: float) -> None:
    patience = time.monotonic() + timeout
    with httpx.Client(base_url=url, timeout=min(timeout, 5.0), trust_env=False) as client:
        while time.monotonic() < patience:
            if process.poll() is not None:
                raise StageFailed(f"the model server ended with code {process.returncode}: {_last_line(log)}")
            try:
                if client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise StageFailed(f"the model server was not ready in {timeout:g} s: {_last_line(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()


def _last_line(log: IO[bytes]) -> str:
    # not by seeking: the server writes at the same position
    lines = os.pread(log.fileno(), 1 << 20, max(0, os.fstat(log.fileno()).st_size - (1 << 20))).splitlines()
    return next((line.decode(errors="replace").strip() for line in reversed(lines) if line.strip()), "its log is empty")
