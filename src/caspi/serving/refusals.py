"""Requests that get an error, in the shape that OpenAI's clients understand."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Refused(HTTPException):
    """A request that gets an error in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(status, message, headers={"Retry-After": str(wait)} if wait else None)
        self.param, self.code = param, code


def overloaded(wait: int) -> Refused:
    return Refused(503, f"too many requests wait: try again in {wait} s", code="overloaded", wait=wait)


def too_large(most: int) -> Refused:
    message = f"the file is too large: this server takes at most {most / 2**20:.0f} MiB"
    return Refused(413, message, param="file", code="file_too_large")


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


async def http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(
        error.status_code, error.detail, getattr(error, "param", None), getattr(error, "code", None)
    )
    response.headers.update(error.headers or {})
    return response


async def server_error(_: Request, error: Exception) -> Response:
    return error_response(500, f"{type(error).__name__}: {error}", code="internal_error")


class BodyLimit:
    """Refuses a request body above a size while it comes in, so that it never fills memory or disk."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                # read on for a while: a client that still sends would see a broken pipe, not the answer
                while message.get("more_body") and got < 16 * self.most:
                    message = await receive()
                    got += len(message.get("body", b""))
                raise too_large(self.most)
            return message

        await self.app(scope, limited, send)
