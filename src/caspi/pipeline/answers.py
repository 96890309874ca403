"""What an answer of Kubeflow Pipelines that is none means: one line with the way out."""

from __future__ import annotations

import json
import os
import re

from caspi.errors import UserError
from caspi.fleet.refusals import one_line

PASSING = (0, 408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another try may do."""
NO_API = (
    "what answers is not the API of Kubeflow Pipelines 2 (/apis/v2beta1): the address of its UI is wanted, for example "
    "https://kubeflow.example.com/pipeline, and of a version from 2.0 on; behind a login, KFP_TOKEN"
)


class NoAnswer(UserError):
    """It does not answer, or not now. Whether the work was done is not known."""


class There(UserError):
    """Something of that name is there already."""


class Gone(UserError):
    """There is no such thing, or not any more."""


def refused(status: int, body: str, where: str) -> UserError:
    """Of an answer that is an error."""
    message = _message(body)
    if "SSLError" in message or "CERTIFICATE" in message:
        return unreachable(message, where)
    if status in PASSING:
        return NoAnswer(f"Kubeflow Pipelines can't answer now (HTTP {status}): {message}", where=where)
    if status == 401 or 300 <= status < 400:
        have = "KFP_TOKEN is not taken: it may have expired" if os.environ.get("KFP_TOKEN") else "KFP_TOKEN is missing"
        return UserError(f"it wants to know who asks (HTTP {status}): {have}", where=where)
    if status == 403:
        return UserError(f"the owner of KFP_TOKEN may not do that (HTTP 403): {message}", where=where)
    if status == 409:
        return There(f"there already: {message}", where=where)
    if status in (404, 405, 501):
        named = re.search(r"not found", message, re.IGNORECASE) and message.lower() != "not found"
        known = named and body.lstrip().startswith("{")  # else there is no such route, or it is a page
        return Gone(message, where=where) if known else UserError(NO_API, where=where)
    return UserError(f"Kubeflow Pipelines refuses (HTTP {status}): {message}", where=where)


def unreachable(message: str, where: str) -> UserError:
    """Of no answer."""
    if "CERTIFICATE" in message or "SSL" in message:
        return UserError(
            "its certificate is not trusted: SSL_CERT_FILE=/path/to/ca.pem names the authority that signed it",
            where=where,
        )
    known = {"Connection refused": "nothing listens there", "Name or service not known": "there is no such host"}
    known |= {"timed out": "no answer in time", "RemoteDisconnected": "it broke the connection off"}
    short = next((text for sign, text in known.items() if sign in message), one_line(message))
    return NoAnswer(
        f"Kubeflow Pipelines can't be reached: {short}; is it up, and the endpoint right? (`kubectl port-forward` "
        "makes one: KFP_ENDPOINT=http://127.0.0.1:PORT)",
        where=where,
    )


def _message(body: str) -> str:
    """What the backend says, in one line; its answers are JSON with an `error` or a `message`."""
    try:
        told = json.loads(body)
        body = str(told.get("message") or told.get("error") or body)
    except (ValueError, AttributeError):
        body = re.sub(r"<[^>]*>", " ", body)
    return one_line(body) or "no reason given"
