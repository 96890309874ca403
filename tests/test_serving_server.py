"""The server over real HTTP."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from caspi.families.base import Clip, Hypothesis
from caspi.serving.languages import same_language
from caspi.serving.queue import BatchLimits
from caspi.serving.server import Limits, create_app, served_name
from tests.served import URL, Parrot, audio, parrot, ready, serving, until


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with parrot(limits=Limits(bytes=600_000, seconds=(0.1, 15.0))) as (client, _):
        yield client


def post(client: httpx.Client, data: bytes | None = None, **form: str) -> httpx.Response:
    files = {"file": ("clip.wav", audio() if data is None else data)}
    return client.post(URL, files=files, data={"model": "model"} | form)


# Shapes as https://platform.openai.com/docs/api-reference/audio documents them.


def test_json_is_the_default(server: httpx.Client) -> None:
    response = post(server)
    assert response.status_code == 200
    assert response.json() == {"text": "1.0 שניות", "usage": {"type": "duration", "seconds": 1}}


def test_text(server: httpx.Client) -> None:
    response = post(server, response_format="text")
    assert response.text == "1.0 שניות\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_verbose_json_has_the_raw_output(server: httpx.Client) -> None:
    assert post(server, audio(1.25), response_format="verbose_json").json() == {
        "task": "transcribe",
        "language": "Hebrew",
        "duration": 1.25,
        "text": "1.2 שניות",
        "raw": "language Hebrew<asr_text>1.2 שניות",
        "usage": {"type": "duration", "seconds": 2},
    }


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_formats_and_rates(server: httpx.Client, form: str, rate: int) -> None:
    assert post(server, audio(2.0, rate=rate, form=form)).json()["text"] == "2.0 שניות"


@pytest.mark.parametrize(
    "form",
    [
        {"language": "he"},
        {"language": "Hebrew"},
        {"language": "he-IL"},
        {"temperature": "0"},
        {"prompt": ""},
        {"stream": "false"},
    ],
)
def test_what_clients_usually_send_is_taken(server: httpx.Client, form: dict[str, str]) -> None:
    assert post(server, **form).status_code == 200


def test_models(server: httpx.Client) -> None:
    listed = server.get("/v1/models").json()
    card = listed["data"][0]
    assert listed["object"] == "list"
    assert (card["id"], card["object"], card["owned_by"]) == ("model", "model", "caspi")
    assert isinstance(card["created"], int)
    assert server.get("/v1/models/model").json() == card


WAV = audio()
M4A = b"\0\0\0 ftypM4A " + b"\0" * 99


def form(file: bytes = WAV, **fields: str) -> dict[str, Any]:
    return {"files": {"file": ("a.wav", file)}, "data": {"model": "model"} | fields}


BAD: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "no file": ({"data": {"model": "model"}}, 400, "file", "missing_required_parameter", "file is missing"),
    "no model": ({"files": {"file": WAV}}, 400, "model", "missing_required_parameter", "model is missing"),
    "JSON": ({"json": {"model": "model"}}, 400, "file", "missing_required_parameter", "file is missing"),
    "file is text": ({"data": {"model": "model", "file": "a.wav"}}, 400, "file", "invalid_value", "file: "),
    "another model": (
        form(model="whisper-1"), 404, "model", "model_not_found", 'no model "whisper-1" here: this server has "model"',
    ),
    "empty": (form(b""), 400, "file", "invalid_audio", "the file is empty"),
    "noise": (form(b"\x01" * 999), 400, "file", "invalid_audio", "a.wav: not decodable"),
    "cut short": (form(WAV[:-9000]), 400, "file", "invalid_audio", "a.wav: "),
    "m4a": (form(M4A), 400, "file", "invalid_audio", "MPEG-4 m4a is not a format that is decoded here"),
    "too short": (form(audio(0.05)), 400, "file", "audio_too_short", "the audio lasts 0.05 s"),
    "too long": (form(audio(16, form="FLAC")), 400, "file", "audio_too_long", "16.00 s: this server takes 0.1 to 15 s"),
    "hours in a small file": (form(audio(9000, rate=20, form="FLAC")), 400, "file", "audio_too_long", "9000.00 s"),
    "too large": (form(b"\0" * 5_000_000), 413, "file", "file_too_large", "at most 1 MiB"),
    "format": (form(response_format="srt"), 400, "response_format", "unsupported_value", "verbose_json, got 'srt'"),
    "language": (form(language="de"), 400, "language", "unsupported_value", "language is Hebrew, got 'de'"),
    "temperature": (form(temperature="0.7"), 400, "temperature", "unsupported_value", "temperature is 0, got 0.7"),
    "temperature is text": (form(temperature="hot"), 400, "temperature", "invalid_value", "temperature: "),
    "prompt": (form(prompt="names"), 400, "prompt", "unsupported_value", "prompt is not supported"),
    "stream": (form(stream="true"), 400, "stream", "unsupported_value", "stream is not supported"),
    "timestamps": (
        form(**{"timestamp_granularities[]": "word"}), 400, "timestamp_granularities[]", "unsupported_parameter",
        "this server takes file, model, language",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(server: httpx.Client, case: str) -> None:
    request, status, param, code, message = BAD[case]
    response = server.post(URL, **request)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert post(server).status_code == 200  # and it goes on


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", URL, 405), ("GET", "/v1/models/x", 404)]
)
def test_wrong_places_have_errors_of_the_same_shape(server: httpx.Client, method: str, path: str, status: int) -> None:
    response = server.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_requests_at_once_are_one_call_of_the_model() -> None:
    seconds = (1.0, 3.0, 1.0, 2.0, 4.0, 1.5, 2.5, 3.5, 0.5)
    with parrot(batches=BatchLimits(clips=8)) as (client, model), ThreadPoolExecutor(9) as pool:
        answers = held(client, model, pool, [audio(one) for one in seconds])
        model.gate.set()
        assert [one.result().json()["text"] for one in answers] == [f"{one:.1f} שניות" for one in seconds]
        assert model.calls == [1, 8]
        metrics = client.get("/metrics").text
        assert 'caspi_requests_total{status="200"} 9.0' in metrics
        assert "caspi_batch_clips_sum 9.0" in metrics
        assert "caspi_audio_seconds_total 19.0" in metrics
        assert "caspi_request_seconds_count 9.0" in metrics
        assert metric(client, "caspi_rtfx") > 0


def test_a_poisoned_clip_fails_alone() -> None:
    with parrot() as (client, model), ThreadPoolExecutor(9) as pool:
        answers = held(client, model, pool, [audio(), audio(1), audio(1, peak=1.0), audio(2)])
        model.gate.set()
        first, one, poisoned, two = [answer.result() for answer in answers]
        assert [r.json()["text"] for r in (first, one, two)] == ["1.0 שניות", "1.0 שניות", "2.0 שניות"]
        assert poisoned.status_code == 500
        assert poisoned.json()["error"] == {
            "message": "the model failed on this clip (RuntimeError: poison)",
            "type": "server_error",
            "param": None,
            "code": "transcription_failed",
        }
        assert 'caspi_requests_total{status="500"} 1.0' in client.get("/metrics").text


def test_overload_is_refused_with_a_time_to_come_back() -> None:
    with parrot(batches=BatchLimits(waiting=2)) as (client, model), ThreadPoolExecutor(3) as pool:
        answers = held(client, model, pool, [audio(), audio(30), audio(30)])
        refused = post(client)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        model.gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]
        assert post(client).status_code == 200


def test_who_goes_away_is_counted_and_not_transcribed() -> None:
    with parrot() as (client, model), ThreadPoolExecutor(1) as pool:
        (first,) = held(client, model, pool, [audio()])
        request = client.build_request("POST", URL, files={"file": audio()}, data={"model": "model"})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.sendall(f"POST {URL} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            until(lambda: metric(client, "caspi_queue_depth") == 1)
        until(lambda: 'caspi_requests_total{status="499"} 1.0' in client.get("/metrics").text)
        model.gate.set()
        assert first.result().status_code == 200
        assert post(client, audio(2)).status_code == 200
        assert model.calls == [1, 1]


def test_not_ready_before_a_clip_is_transcribed() -> None:
    model = Parrot()
    model.gate.clear()
    with serving(create_app(model=model)) as client:  # type: ignore[arg-type]
        health = client.get("/health")
        assert (health.status_code, health.json()["status"], health.headers["retry-after"]) == (503, "loading", "1")
        assert post(client).json()["error"]["code"] == "loading"
        assert metric(client, "caspi_ready") == 0
        model.gate.set()
        assert ready(client).get("/health").json() == {"status": "ready", "model": "model"}
        assert model.calls == [1]
        assert metric(client, "caspi_ready") == 1


def test_a_model_that_does_not_transcribe_is_never_ready() -> None:
    class Mute(Parrot):
        def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
            return []

    with serving(create_app(model=Mute())) as client:  # type: ignore[arg-type]
        until(lambda: client.get("/health").json()["status"] != "loading")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (
            503,
            "failed: the model does not transcribe: one clip in, no text out",
        )


def test_stopping_finishes_what_runs() -> None:
    with ThreadPoolExecutor(3) as pool:
        with parrot() as (client, model):
            answers = held(client, model, pool, [audio(), audio(2)])
            threading.Timer(0.3, model.gate.set).start()  # leaving the block stops the server first
        assert [answer.result().json()["text"] for answer in answers] == ["1.0 שניות", "2.0 שניות"]


@pytest.mark.parametrize(
    ("asked", "spoken", "same"),
    [
        ("he", "Hebrew", True), ("iw", "Hebrew", True), ("HE_il", "Hebrew", True), (" hebrew ", "Hebrew", True),
        ("en", "Hebrew", False), ("", "Hebrew", False), ("zh", "Chinese", True), ("yue", "Cantonese", True),
        ("Klingon", "Klingon", True), ("hebrewish", "Hebrew", False),
    ],
)  # fmt: skip
def test_names_and_codes_of_languages(asked: str, spoken: str, same: bool) -> None:
    assert same_language(asked, spoken) is same


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/demo-r1-6493ec98/model", "demo-r1-6493ec98"),
        ("checkpoints/step-000150", "step-000150"),
        ("/model", "model"),
    ],
)
def test_the_name_of_a_model(folder: str, name: str) -> None:
    assert served_name(Path(folder)) == name


def held(
    client: httpx.Client, model: Parrot, pool: ThreadPoolExecutor, clips: list[bytes]
) -> list[Future[httpx.Response]]:
    """Post clips while the model stands at its gate: the first is in the model, the others wait, in order."""
    model.gate.clear()
    model.entered.clear()
    answers = [pool.submit(post, client, clips[0])]
    assert model.entered.wait(20)
    for number, clip in enumerate(clips[1:], start=1):
        answers.append(pool.submit(post, client, clip))
        until(lambda number=number: metric(client, "caspi_queue_depth") == number)
    return answers


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])
