"""charts/caspi-serve without Helm: what its values take and refuse, and the probe that asks vLLM for words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import caspi
from caspi.charts.serve import ServeValues
from caspi.corpus.audio import Clip, decode
from caspi.families.base import SAMPLE_RATE, Hypothesis
from caspi.serving.server import GRACE_SECONDS, create_app
from tests.charts.rendering import HERE, HOUSE, merged, value_sets
from tests.served import Parrot, parrot, ready, serving
from tests.standins.answering import answering

CHART = HOUSE / "charts/caspi-serve"
READY = HOUSE / "images/serve/ready.py"
SETS = value_sets(CHART)
BAD = yaml.safe_load((HERE / "caspi-serve/bad-values.yaml").read_text("utf-8"))


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_values_yaml_and_the_value_sets_are_of_the_model(path: Path) -> None:
    values = yaml.safe_load(path.read_text("utf-8"))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert ServeValues.model_validate(merged(defaults, values)) == ServeValues.model_validate(values)


@pytest.mark.parametrize("case", BAD, ids=lambda case: json.dumps(case["values"])[:60])
def test_the_model_refuses_what_the_schema_refuses(case: dict[str, Any]) -> None:
    """Helm's own lines are for the cluster's tests; what does not go together is refused by the templates alone."""
    values = merged(yaml.safe_load(SETS[0].read_text("utf-8")), case["values"])
    if case["lines"].startswith("- at"):
        with pytest.raises(ValidationError):
            ServeValues.model_validate(values)
    else:
        ServeValues.model_validate(values)


def test_chart_version_follows_the_package() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"] == caspi.__version__


def test_a_pod_is_given_the_time_that_the_server_takes_to_end() -> None:
    text = (CHART / "templates/deployment.yaml").read_text()
    added = re.search(r"terminationGracePeriodSeconds: {{ add \.Values\.drainSeconds (\d+) \d+ }}", text)
    assert added and int(added[1]) == GRACE_SECONDS


def ask(port: int, model: str = "model", timeout: float = 5) -> tuple[int, str]:
    """The probe as the kubelet runs it: another Python, its own library only."""
    command = [sys.executable, "-I", "-S", READY, f"--port={port}", f"--model={model}", f"--timeout={timeout}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_ready_when_a_clip_was_transcribed() -> None:
    with parrot() as (client, model):
        assert ask(client.base_url.port or 0) == (0, "")
        assert model.calls == [1]
        code, said = ask(client.base_url.port or 0, "another")
        assert (code, said.startswith("not ready: status 404: ")) == (1, True)
        assert said.count("\n") == 1


def test_the_clip_is_sound_that_any_server_takes() -> None:
    heard: list[bytes] = []

    class Listening(Answering):
        def answer(self, body: bytes) -> tuple[int, bytes]:
            heard.append(body)
            return 200, b'{"text": ""}'

    with answering(Listening) as url:
        assert ask(port_of(url)) == (0, "")
    (body,) = heard
    clip = decode(body[body.index(b"RIFF") : body.rindex(b"\r\n--")])
    assert len(clip) == SAMPLE_RATE
    assert 0.05 < abs(clip).max() < 0.2


def not_ready(answer: Callable[[], tuple[int, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Server(Answering):
        def answer(self, _: bytes) -> tuple[int, bytes]:
            return answer()

    return Server


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: (503, b"loading"), "status 503: loading"),
        (lambda: (500, b'{"error": {"message": "CUDA\\nout of memory"}}'), "status 500: "),
        (lambda: (200, b"<html>a page</html>"), "JSONDecodeError: "),
        (lambda: (200, b'{"ok": true}'), "KeyError: 'text'"),
        (lambda: (200, b'{"text": null}'), "no text in the answer: None"),
        (lambda: (200, b"[]"), "TypeError: "),
        (lambda: time.sleep(2) or (200, b'{"text": "late"}'), "TimeoutError: timed out"),
    ],
)
def test_not_ready_and_why(answer: Callable[[], tuple[int, bytes]], said: str) -> None:
    with answering(not_ready(answer)) as url:
        code, line = ask(port_of(url), timeout=0.5)
    assert (code, line.startswith(f"not ready: {said}"), line.count("\n")) == (1, True, 1), line


def test_not_ready_while_nobody_listens() -> None:
    code, line = ask(1)
    assert (code, line.startswith("not ready: ConnectionRefusedError: ")) == (1, True)


class Ill(Parrot):
    """Has transcribed once, while it loaded, and never again."""

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        if self.calls:
            raise RuntimeError("kernel image is not for this GPU")
        return super().transcribe(clips)


def test_a_server_that_is_up_and_hears_nothing_is_not_ready() -> None:
    """The planted fault: /health is 200."""
    with serving(create_app(model=Ill())) as client:  # type: ignore[arg-type]
        assert ready(client).get("/health").status_code == 200
        code, line = ask(client.base_url.port or 0)
    assert (code, line.startswith("not ready: status 500: ")) == (1, True)


class Answering(BaseHTTPRequestHandler):
    """Answers every POST by `answer`."""

    def answer(self, body: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    def do_POST(self) -> None:
        status, answer = self.answer(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            pass  # the probe has given up

    def log_message(self, *_: object) -> None:
        pass


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
