"""Transcribes many clips through a server that speaks the OpenAI API: Caspi's own, vLLM, or another."""

from __future__ import annotations

import asyncio
import time
from asyncio import sleep
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from caspi.errors import CaspiError, UserError

ATTEMPTS = 8
ATTEMPTS_AT_500 = 3  # a fault of the server: mostly it stays
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0  # seconds; doubled each time
TIMEOUT = httpx.Timeout(300.0, connect=10.0)
RETRIED = {408, 429, 500, 502, 503, 504}
REFUSED = {400, 413, 415, 422}


class ServerError(CaspiError):
    """A server that can't be used: it is gone, stays overloaded, or speaks something else."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Item:
    """A clip to transcribe. Its bytes are read when its turn comes."""

    id: str
    read: Callable[[], tuple[bytes, str]]
    """The encoded audio, and a file suffix such as `.mp3`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said about one clip."""

    id: str
    text: str
    raw: str
    """The model's whole output where the server gives it, else the text."""
    seconds: float
    """From sending the request to the end of the answer, retries not counted."""
    error: str | None = None
    """Why the server refused this clip; then text and raw are empty."""


async def transcribe_all(
    url: str,
    items: Iterable[Item],
    *,
    concurrency: int = 8,
    on_done: Callable[[Answer], None] = lambda _: None,
    model: str | None = None,
    language: str | None = None,
) -> list[Answer]:
    """Answers in the order of `items`; `on_done` sees each as it comes.

    A refused clip is an answer with an error. ServerError, one line, when the server stays unreachable, overloaded
    or broken. Without `model` it is the one that the server has.
    """
    left = iter(enumerate(items))
    answers: dict[int, Answer] = {}
    async with _client(url, concurrency) as client:
        form = await _form(client, model, language)
        workers = [asyncio.create_task(_work(client, form, left, answers, on_done)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return [answers[place] for place in sorted(answers)]


async def check_serves(url: str, model: str, digest: str) -> None:
    """ServerError unless the server is ready and has a model of that name and, where it says a digest (Caspi's own does
    as soon as it has loaded), that one."""
    async with _client(url, 1) as client:
        await _send(client, "whether it is ready", lambda: client.build_request("GET", "/health"))
        card = (await _cards(client, model))[model]
        found = card.get("digest")
        if found is not None and found != digest:
            raise ServerError(
                f'{client.base_url}: its "{model}" is another model (sha256:{found:.12}, not sha256:{digest:.12}): '
                "the folder was changed after it was loaded; restart the server"
            )


def _client(url: str, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=_base(url), timeout=TIMEOUT, limits=limits, trust_env=False)


def _base(url: str) -> httpx.URL:
    """With or without the /v1 that OpenAI's clients want."""
    try:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise UserError(f"{url!r} is no URL of a server ({error}); it looks like http://127.0.0.1:8000") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise UserError(f"{url!r} is no URL of a server; it looks like http://127.0.0.1:8000")
    return base


async def _work(
    client: httpx.AsyncClient,
    form: dict[str, str],
    left: Iterator[tuple[int, Item]],
    answers: dict[int, Answer],
    on_done: Callable[[Answer], None],
) -> None:
    for place, item in left:
        answers[place] = answer = await _transcribe(client, form, item)
        on_done(answer)


async def _form(client: httpx.AsyncClient, model: str | None, language: str | None) -> dict[str, str]:
    """The fields that every request has. Only our own server gives raw output, and says so by `owned_by`."""
    known = await _cards(client, model)
    model = model or next(iter(known))
    ours = known[model].get("owned_by") == "caspi"
    form = {"model": model, "response_format": "verbose_json" if ours else "json", "temperature": "0"}
    return form | ({"language": language} if language else {})


async def _cards(client: httpx.AsyncClient, model: str | None) -> dict[str, dict[str, Any]]:
    """What the server has, by name; ServerError when it has nothing, or not `model`."""
    response, _ = await _send(client, "what it serves", lambda: client.build_request("GET", "/v1/models"))
    cards = _json(response, client).get("data")
    known = {card["id"]: card for card in cards if isinstance(card, dict) and "id" in card} if cards else {}
    if not known or response.status_code != 200:
        raise ServerError(f"{client.base_url}: GET /v1/models names no model (status {response.status_code})")
    if model is not None and model not in known:
        raise ServerError(f'{client.base_url}: no model "{model}"; it has {", ".join(known)}')
    return known


async def _transcribe(client: httpx.AsyncClient, form: dict[str, str], item: Item) -> Answer:
    data, suffix = item.read()

    def request() -> httpx.Request:
        files = {"file": (f"audio{suffix}", data)}
        return client.build_request("POST", "/v1/audio/transcriptions", data=form, files=files)

    response, seconds = await _send(client, item.id, request)
    if response.status_code in REFUSED:
        return Answer(item.id, "", "", seconds, error=_message(response))
    if response.status_code != 200:
        raise ServerError(f"{client.base_url}: status {response.status_code} for {item.id}: {_message(response)}")
    body = _json(response, client)
    if not isinstance(body.get("text"), str):
        raise ServerError(f"{client.base_url}: an answer without text for {item.id}: {response.text[:200]!r}")
    raw = body.get("raw")
    return Answer(item.id, body["text"], raw if isinstance(raw, str) else body["text"], seconds)


async def _send(
    client: httpx.AsyncClient, what: str, request: Callable[[], httpx.Request]
) -> tuple[httpx.Response, float]:
    """The response and its seconds. What may pass by itself is tried again, at the server's pace if it names one."""
    problem, begun = "", time.monotonic()
    for attempt in range(ATTEMPTS):
        wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        sent = time.monotonic()
        try:
            response = await client.send(request())
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        else:
            if response.status_code not in RETRIED or (response.status_code == 500 and attempt + 1 >= ATTEMPTS_AT_500):
                return response, time.monotonic() - sent
            problem = f"status {response.status_code}: {_message(response)}"
            wait = min(_retry_after(response) or wait, LONGEST_WAIT)
        if attempt + 1 < ATTEMPTS:
            await sleep(wait)
    tried = f"{ATTEMPTS} attempts in {time.monotonic() - begun:.0f} s"
    raise ServerError(f"{client.base_url}: gave up on {what} after {tried} ({problem})")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, or a date: both are allowed (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _message(response: httpx.Response) -> str:
    """What an error response says, in one line, whatever its shape."""
    try:
        body = response.json()
        error = body.get("error", body)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = response.text
    return " ".join(str(message or response.reason_phrase).split())[:300]


def _json(response: httpx.Response, client: httpx.AsyncClient) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ServerError(f"{client.base_url}: not an OpenAI-compatible server: {response.text[:100]!r}")
    return body
