"""A server in a process of its own: ready, the same words as without it, and gone afterwards, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from caspi.corpus.audio import decode
from caspi.errors import StageFailed, UserError
from caspi.files import folder_digest
from caspi.serving.process import serve_process
from caspi.serving.server import listen, load_model
from caspi.spec.models import Qwen3AsrModel
from tests.served import URL, audio, until


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-ASR from random weights, as training saves it: with the card of its round."""
    import torch

    from caspi.families.qwen3_asr import QWEN3_ASR

    folder = tmp_path_factory.mktemp("tiny")
    spec = Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew", context="digits")
    base = QWEN3_ASR.prepare(spec, ["אחת שתיים שלוש", "שלום עולם"] * 8, 1, folder)
    QWEN3_ASR.load(base, spec, torch.device("cpu")).save(folder / "demo-r1" / "model")
    return folder / "demo-r1" / "model"


def test_a_round_trip_through_a_real_process(tiny: Path, tmp_path: Path) -> None:
    clips = [
        audio(seconds, peak=peak) for seconds, peak in ((0.5, 0.2), (2.0, 0.9), (1.0, 0.5), (1.5, 0.1), (0.7, 0.6))
    ]
    loaded = load_model(tiny)
    direct = [loaded.model.transcribe([decode(clip)])[0] for clip in clips]
    form = {"model": "demo-r1", "response_format": "verbose_json", "language": "he", "prompt": "digits"}
    log = tmp_path / "server.log"
    others = set(children(os.getpid()))
    with ThreadPoolExecutor(5) as pool, httpx.Client(timeout=60) as client:
        with serve_process(tiny, log=log) as url:
            (server,) = set(children(os.getpid())) - others
            assert client.get(f"{url}/health").json() == {"status": "ready", "model": "demo-r1"}
            assert client.get(f"{url}/v1/models/demo-r1").json()["digest"] == folder_digest(tiny)

            def post(clip: bytes) -> httpx.Response:
                return client.post(url + URL, files={"file": clip}, data=form)

            heard = [response.json() for response in pool.map(post, clips)]
            long = pool.submit(post, audio(10))
            until(lambda: "caspi_requests_running 1.0" in client.get(f"{url}/metrics").text)
        # SIGTERM came in the middle of it
        assert long.result().status_code == 200
        assert not alive(server)
    assert [(one["text"], one["raw"]) for one in heard] == [(one.text, one.raw) for one in direct]
    assert [one["language"] for one in heard] == [one.language or "Hebrew" for one in direct]
    assert log.read_text() == f"demo-r1 at {url} (GET /health says when it is ready)\n"


def test_a_killed_parent_leaves_no_server(tiny: Path) -> None:
    script = f"""
        import pathlib, time
        from caspi.serving.process import serve_process
        with serve_process(pathlib.Path({str(tiny)!r})):
            time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        until(lambda: children(parent.pid))
        (server,) = children(parent.pid)
        until(lambda: os.getpgid(server) == server)  # Ctrl-C at a terminal does not reach it
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not alive(server))


def test_a_server_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with (
        pytest.raises(StageFailed, match=r"server ended with code 2: .*config.json: model_type is 'whisper'"),
        serve_process(tmp_path),
    ):
        raise AssertionError("never ready")


def test_a_server_that_is_late_is_ended(tiny: Path, tmp_path: Path) -> None:
    others = set(children(os.getpid()))
    with (
        pytest.raises(StageFailed, match=r"^the model server was not ready in 0.1 s: its log is empty$"),
        serve_process(tiny, timeout=0.1),
    ):
        raise AssertionError("never ready")
    assert set(children(os.getpid())) <= others


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", None), ("127.0.0.1", 70_000), ("192.0.2.1", 0), ("nowhere.invalid", 0)]
)
def test_a_place_that_cannot_be_listened_on(host: str, port: int | None) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1] if port is None else port
        with pytest.raises(UserError, match=rf"can't listen on {host}:{port} \(.*--port 0 takes a free one"):
            listen(host, port)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
