"""Any checkpoint behind the OpenAI transcription API. `caspi serve` and serving/process.py start it."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from caspi.corpus.audio import AudioError, decode, seconds_of
from caspi.errors import CaspiError, UserError
from caspi.families.base import SAMPLE_RATE, Clip, Model
from caspi.serving.languages import same_language
from caspi.serving.metrics import CONTENT_TYPE, Measured
from caspi.serving.queue import BatchLimits
from caspi.serving.refusals import BodyLimit, Refused, error_response, http_error, overloaded, server_error, too_large
from caspi.serving.speech import Limits, Loaded, Speech, load_model

TRANSCRIPTIONS = "/v1/audio/transcriptions"
GRACE_SECONDS = 30  # what is running may take so long after SIGTERM


def create_app(
    folder: Path | None = None,
    *,
    model: Model | None = None,
    language: str | None = None,
    limits: Limits | None = None,
    batches: BatchLimits | None = None,
) -> FastAPI:
    """The app of a model folder, or of a `model` that is loaded already. It loads when the app starts."""
    assert (folder is None) != (model is None), "give a folder or a model"
    name = served_name(folder) if folder else "model"
    load = (lambda: load_model(folder)) if folder else (lambda: Loaded(model, language))  # type: ignore[arg-type]
    speech = Speech(name, load, limits or Limits(), batches or BatchLimits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        speech.start()
        yield
        await anyio.to_thread.run_sync(speech.stop)

    app = FastAPI(title="Caspi", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.speech = speech
    app.add_middleware(BodyLimit, most=speech.limits.bytes + 64 * 2**10)  # the form around the file
    app.add_middleware(Measured, metrics=speech.metrics, path=TRANSCRIPTIONS)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, _bad_form)
    app.add_exception_handler(Exception, server_error)
    app.add_api_route(TRANSCRIPTIONS, transcriptions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/v1/models/{name}", one_model, methods=["GET"])
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    return app


class Transcription(BaseModel):
    """The form of a transcription request, as OpenAI documents it. Anything else is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[UploadFile, File()]
    model: str
    language: str | None = None
    prompt: str = ""
    response_format: str = "json"
    temperature: float = 0.0
    stream: bool = False


async def transcriptions(form: Annotated[Transcription, Form()], request: Request) -> Response:
    speech: Speech = request.app.state.speech
    loaded = _ready(speech)
    _check_form(form, speech.name, loaded)
    if speech.batches.full:
        raise overloaded(1)  # before the work of decoding
    clip = await _clip(form.file, speech)
    heard = await speech.transcribe(clip, request)
    seconds = len(clip) / SAMPLE_RATE
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    match form.response_format:
        case "text":
            return PlainTextResponse(heard.text + "\n")
        case "json":
            return JSONResponse({"text": heard.text, "usage": usage})
        case _:
            return JSONResponse(
                {
                    "task": "transcribe",
                    "language": heard.language or loaded.language or "",
                    "duration": round(seconds, 3),
                    "text": heard.text,
                    "raw": heard.raw,  # ours: what the model wrote, tags included
                    "usage": usage,
                }
            )


def _check_form(form: Transcription, name: str, loaded: Loaded) -> None:
    """Refuse what this server would otherwise silently not do."""
    if form.model != name:
        raise _no_model(form.model, name)
    if form.response_format not in ("json", "text", "verbose_json"):
        message = f"response_format is json, text or verbose_json, got {form.response_format!r:.40}: no timestamps here"
        raise Refused(400, message, param="response_format", code="unsupported_value")
    if form.stream:
        raise Refused(400, "stream is not supported: leave it out", param="stream", code="unsupported_value")
    if form.temperature != 0:
        message = f"temperature is 0, got {form.temperature:g}: decoding is greedy, so that answers repeat"
        raise Refused(400, message, param="temperature", code="unsupported_value")
    if form.prompt not in ("", loaded.context):
        message = "prompt is not supported: this model has the context that it was trained with; leave it out"
        raise Refused(400, message, param="prompt", code="unsupported_value")
    if form.language and loaded.language and not same_language(form.language, loaded.language):
        message = f"language is {loaded.language}, got {form.language!r:.40}: this model was trained for that only"
        raise Refused(400, message, param="language", code="unsupported_value")


async def _clip(file: UploadFile, speech: Speech) -> Clip:
    data = await file.read()
    if not data:
        raise Refused(400, "the file is empty", param="file", code="invalid_audio")
    if len(data) > speech.limits.bytes:
        raise too_large(speech.limits.bytes)
    try:
        return await anyio.to_thread.run_sync(
            _decode, data, file.filename or "", speech.limits, limiter=speech.decoders
        )
    except AudioError as error:
        raise Refused(400, str(error), param="file", code="invalid_audio") from None


def _decode(data: bytes, name: str, limits: Limits) -> Clip:
    """Refuses by the header first: a small file may hold hours."""
    least, most = limits.seconds
    seconds = seconds_of(data, name)
    if seconds <= most:
        clip = decode(data, name)
        seconds = len(clip) / SAMPLE_RATE
        if least <= seconds <= most:
            return clip
    message = f"the audio lasts {seconds:.2f} s: this server takes {least:g} to {most:g} s"
    raise Refused(400, message, param="file", code="audio_too_short" if seconds < least else "audio_too_long")


async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model_card(request.app.state.speech)]}


async def one_model(name: str, request: Request) -> dict[str, Any]:
    speech: Speech = request.app.state.speech
    if name != speech.name:
        raise _no_model(name, speech.name)
    return _model_card(speech)


async def health(request: Request) -> Response:
    """200 when the model has loaded and transcribed a clip, 503 before."""
    speech: Speech = request.app.state.speech
    if speech.loaded:
        return JSONResponse({"status": "ready", "model": speech.name})
    state = f"failed: {speech.failure}" if speech.failure else "loading"
    return JSONResponse({"status": state, "model": speech.name}, 503, {"Retry-After": "1"})


async def metrics(request: Request) -> Response:
    speech: Speech = request.app.state.speech
    return Response(speech.metrics.render(), media_type=CONTENT_TYPE)


def _model_card(speech: Speech) -> dict[str, Any]:
    """OpenAI's, and once it has loaded the sha256 of the model folder: which model of that name this is."""
    card = {"id": speech.name, "object": "model", "created": speech.created, "owned_by": "caspi"}
    return card | ({"digest": speech.loaded.digest} if speech.loaded and speech.loaded.digest else {})


def _ready(speech: Speech) -> Loaded:
    if speech.loaded is None:
        raise Refused(503, "the model is loading", code="loading", wait=1)
    return speech.loaded


def _no_model(asked: str, name: str) -> Refused:
    return Refused(
        404, f'no model "{asked[:80]}" here: this server has "{name}"', param="model", code="model_not_found"
    )


async def _bad_form(_: Request, error: Exception) -> Response:
    """The first problem of a form, in a sentence."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    param = str(problem["loc"][-1])
    match problem["type"]:
        case "missing":
            message, code = f"{param} is missing", "missing_required_parameter"
        case "extra_forbidden":
            takes = ", ".join(Transcription.model_fields)
            message, code = f"{param} is not supported: this server takes {takes}", "unsupported_parameter"
        case _:
            message, code = f"{param}: {problem['msg'][0].lower()}{problem['msg'][1:]}", "invalid_value"
    return error_response(400, message, param, code)


def served_name(folder: Path) -> str:
    """The name of a model in the API: of its folder, or of the round directory when the folder is `model`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def serve(folder: Path, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGTERM or Ctrl-C; what is running is finished. UserError when the model or the port is no good."""
    listener = listen(host, port)
    address = f"[{host}]" if ":" in host else host
    run(folder, listener, f"http://{address}:{listener.getsockname()[1]}")


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        known = isinstance(error, OSError) and (error.errno or 0) > 0
        reason = os.strerror(error.errno) if known else str(error)  # type: ignore[union-attr, arg-type]
        raise UserError(f"can't listen on {host}:{port} ({reason}); --port 0 takes a free one") from None


def run(folder: Path, listener: socket.socket, url: str) -> None:
    if not (folder / "config.json").is_file():
        raise UserError("no model there: it has no config.json", where=str(folder))
    app = create_app(folder)
    speech: Speech = app.state.speech
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
    )

    def stop() -> None:
        server.should_exit = True

    speech.on_failure = stop
    print(f"{speech.name} at {url} (GET /health says when it is ready)", file=sys.stderr, flush=True)
    # uvicorn raises the signal again when it is done: a graceful end is a success
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if speech.failure:
        raise speech.failure


def main() -> None:
    """`python -m caspi.serving.server MODEL`: what serving/process.py starts."""
    parser = argparse.ArgumentParser(prog="python -m caspi.serving.server")
    parser.add_argument("model", type=Path)
    parser.add_argument("--listener", type=int, required=True, help="file descriptor of a listening socket")
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(fileno=arguments.listener)
    try:
        run(arguments.model, listener, f"http://127.0.0.1:{listener.getsockname()[1]}")
    except CaspiError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """stdin is a pipe that only the parent holds: it ends when the parent does, killed or not."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
