"""The client against real servers that fail, refuse, or speak OpenAI's API with fewer fields."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from caspi.errors import UserError
from caspi.serving import client
from caspi.serving.client import Answer, Item, ServerError, transcribe_all
from caspi.serving.server import listen
from tests.served import audio, parrot, serving


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client waits; nothing really sleeps."""
    waited: list[float] = []

    async def instantly(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client, "sleep", instantly)
    return waited


def items(*clips: bytes) -> list[Item]:
    return [Item(f"set/{number}", lambda data=clip: (data, ".wav")) for number, clip in enumerate(clips)]  # type: ignore[misc]


def transcribe(url: object, clips: list[Item], **options: Any) -> list[Answer]:
    return asyncio.run(transcribe_all(str(url), clips, **options))


def scripted(*responses: Response, owner: str = "vllm") -> FastAPI:
    """A server that gives these responses in turn, the last one for ever, and remembers what it was sent."""
    app = FastAPI()
    app.state.forms = []
    left = list(responses)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "qwen", "object": "model", "owned_by": owner}]}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        form = await request.form()
        app.state.forms.append({name: value for name, value in form.items() if name != "file"})
        return left.pop(0) if len(left) > 1 else left[0]

    return app


def fails(status: int, **headers: str) -> Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": "no\nluck", "type": "server_error"}}, status, headers)


OK = JSONResponse({"text": "שלום"})


def test_answers_come_in_the_order_of_the_items_and_as_they_are_done() -> None:
    seconds = [3, 1, 2, 1.5, 0.5]
    done: list[str] = []
    with parrot() as (server, _):
        answers = transcribe(
            server.base_url, items(*map(audio, seconds)), concurrency=3, on_done=lambda answer: done.append(answer.id)
        )
    assert [answer.text for answer in answers] == [f"{one:.1f} שניות" for one in seconds]
    assert [answer.raw for answer in answers] == [f"language Hebrew<asr_text>{one:.1f} שניות" for one in seconds]
    assert all(0 < answer.seconds < 20 and answer.error is None for answer in answers)
    assert sorted(done) == [f"set/{number}" for number in range(5)]


def test_a_refused_clip_is_an_answer_with_its_error() -> None:
    with parrot() as (server, _):
        good, refused = transcribe(f"{server.base_url}/v1", items(audio(), b"no audio"))
    assert good.error is None
    assert (refused.text, refused.raw) == ("", "")
    assert refused.error is not None and "not decodable" in refused.error


def test_another_openai_server_gives_text_only() -> None:
    with serving(app := scripted(OK)) as server:
        (answer,) = transcribe(server.base_url, items(b"x"), language="he")
    assert (answer.text, answer.raw, answer.error) == ("שלום", "שלום", None)
    # vLLM refuses verbose_json for models without timestamps
    assert app.state.forms == [{"model": "qwen", "response_format": "json", "temperature": "0", "language": "he"}]


def test_our_own_server_is_asked_for_raw_output() -> None:
    verbose = JSONResponse({"text": "a a", "raw": "language Hebrew<asr_text>a a"})
    with serving(app := scripted(verbose, owner="caspi")) as server:
        (answer,) = transcribe(server.base_url, items(b"x"))
    assert answer.raw == "language Hebrew<asr_text>a a"
    assert app.state.forms[0]["response_format"] == "verbose_json"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_ever_more_slowly(status: int, waits: list[float]) -> None:
    with serving(scripted(fails(status), fails(status), OK)) as server:
        (answer,) = transcribe(server.base_url, items(b"x"))
    assert answer.text == "שלום"
    assert waits == [0.25, 0.5]


def test_the_server_may_name_the_wait(waits: list[float]) -> None:
    in_ten_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    odd = [fails(429, retry_after=value) for value in ("7", in_ten_seconds, "9999", "soon", "")]
    with serving(scripted(*odd, OK)) as server:
        transcribe(server.base_url, items(b"x"))
    assert waits[0] == 7
    assert 8 < waits[1] <= 10
    assert waits[2:] == [30, 2, 4]  # no longer than this; then as without it


@pytest.mark.parametrize(
    ("response", "attempts", "message"),
    [
        (fails(503), 8, r"^http\S+: gave up on set/0 after 8 attempts in \d+ s \(status 503: no luck\)$"),
        (fails(500), 3, r"^http\S+: status 500 for set/0: no luck$"),
        (fails(401), 1, r"status 401 for set/0: no luck$"),
        (fails(404), 1, r"status 404 for set/0: no luck$"),
        (JSONResponse({"segments": []}), 1, r"an answer without text for set/0"),
        (JSONResponse(["text"]), 1, r"not an OpenAI-compatible server"),
        (Response("<html>hello</html>"), 1, r"not an OpenAI-compatible server: '<html>hello</html>'$"),
    ],
)
def test_giving_up_says_why_in_one_line(response: Response, attempts: int, message: str, waits: list[float]) -> None:
    with serving(app := scripted(response)) as server, pytest.raises(ServerError, match=message) as error:
        transcribe(server.base_url, items(b"x", b"y", b"z"), concurrency=1)
    assert "\n" not in str(error.value)
    assert len(app.state.forms) == attempts


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        ServerError, match=rf"127.0.0.1:{port}: gave up on what it serves after 8 attempts .*ConnectError"
    ):
        transcribe(f"http://127.0.0.1:{port}", items(b"x"))


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://a:b", "http://", ""])
def test_no_url(url: str) -> None:
    with pytest.raises(UserError, match="is no URL of a server"):
        transcribe(url, items(b"x"))


def test_a_model_that_is_not_there() -> None:
    with serving(scripted(OK)) as server, pytest.raises(ServerError, match='no model "whisper"; it has qwen'):
        transcribe(server.base_url, items(b"x"), model="whisper")


def test_one_failure_ends_the_others(waits: list[float]) -> None:
    with serving(app := scripted(fails(401))) as server, pytest.raises(ServerError):
        transcribe(server.base_url, items(*[b"x"] * 100), concurrency=4)
    assert len(app.state.forms) <= 4
