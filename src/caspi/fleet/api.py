"""The Kubernetes API as plain dicts: read, patch, delete; retried where that may help, else an error of one line."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from caspi.errors import UserError
from caspi.fleet.refusals import OutOfReach, as_error, one_line, refusal

Object = dict[str, Any]
Answer = TypeVar("Answer")
TIMEOUT = (5, 60)
"""Seconds to connect, and between two pieces of an answer."""
PATIENCE = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries."""
PYTORCHJOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
PAGE = 500


class NotFound(Exception):
    """The API server does not have the object, or not the kind."""


class Changed(Exception):
    """Somebody else has changed the object since it was read."""


class Forbidden(UserError):
    """The user may not do that."""


class Broken(Exception):
    """A stream ended in the middle: read on from where it stood."""


@dataclass(frozen=True, slots=True)
class Api:
    """One namespace of one cluster."""

    client: Any
    """kubernetes.client.ApiClient."""
    namespace: str
    context: str | None = None
    """Of the kubeconfig; None: the current one, or that of the pod that this runs in."""

    @property
    def where(self) -> str:
        return f"namespace {self.namespace}" + (f" (context {self.context})" if self.context else "")

    def get(self, path: str, **query: Any) -> Object:
        """`{namespace}` in the path is filled in. Raises NotFound, Forbidden, UserError."""
        answer: Object = self._retried(lambda: json.loads(self._call("GET", path, query).data))
        return answer

    def names(self, path: str, **query: Any) -> list[Object]:
        """Metadata of the items of a list: what is in a Secret is not read where its labels are enough."""
        kind = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        answer = self._retried(lambda: json.loads(self._call("GET", path, query, accept=kind).data))
        return [item["metadata"] for item in answer.get("items") or []]

    def items(self, path: str, **query: Any) -> list[Object]:
        """All items of a list, page by page, each without the bookkeeping of its writers."""
        found: list[Object] = []
        more = {"limit": PAGE, **query}
        while True:
            page = self.get(path, **more)
            found += page.get("items") or []
            if not (rest := page.get("metadata", {}).get("continue")):
                break
            more = {**query, "limit": PAGE, "continue": rest}
        for item in found:
            item.get("metadata", {}).pop("managedFields", None)
        return found

    def patch(self, path: str, seen: Object, change: Object) -> None:
        """Merge `change` into an object that is as it was `seen`. Raises Changed when it isn't, NotFound, UserError."""
        own = {"resourceVersion": seen["metadata"]["resourceVersion"], "uid": seen["metadata"]["uid"]}
        body = {**change, "metadata": {**change.get("metadata", {}), **own}}
        self._retried(lambda: self._call("PATCH", path, {}, body, content="application/merge-patch+json"))

    def delete(self, path: str, uid: str | None = None) -> bool:
        """Delete an object with what it owns; only the one with this uid. False when it was gone."""
        body: Object = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._retried(lambda: self._call("DELETE", path, {}, body))
        except NotFound:
            return False
        return True

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """The lines of a log as they come. Not retried: who reads knows where to go on.

        Raises NotFound, UserError; Broken when the connection ends before the log does.
        """
        from urllib3.exceptions import HTTPError

        answer = retried(lambda: self._call("GET", path, query), self.where, ())
        rest = b""
        try:
            for piece in answer.stream(65536):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        except (HTTPError, OSError) as error:
            raise Broken(str(error)) from None
        finally:
            answer.close()

    def _call(
        self,
        method: str,
        path: str,
        query: Object,
        body: Object | None = None,
        accept: str = "application/json, */*",
        content: str = "application/json",
    ) -> Any:
        return self.client.call_api(
            path.replace("{namespace}", self.namespace),
            method,
            query_params=[(name, str(value)) for name, value in query.items()],
            header_params={"Accept": accept, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=TIMEOUT,
        )[0]

    def _retried(self, call: Callable[[], Answer]) -> Answer:
        return retried(call, self.where)


def retried(call: Callable[[], Answer], where: str, patience: tuple[float, ...] = PATIENCE) -> Answer:
    """Call until it answers, else OutOfReach; what can't get better raises NotFound, Changed, Forbidden or UserError
    at once."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    waits = iter(patience)
    while True:
        try:
            return call()
        except ApiException as error:
            message = _message(error)
            if error.status == 404 or (error.status == 409 and "UID in precondition" in message):
                raise NotFound(message) from None
            if error.status == 409 and "the object has been modified" in message:
                raise Changed(message) from None
            problem = _error(error, where)
            passing = error.status in (0, 408, 409, 425, 429, 500, 502, 503, 504)
        except (HTTPError, OSError) as error:
            known = refusal(str(error))
            problem, passing = as_error(str(error), where), known is None or known.passing
        wait = next(waits, None)
        if not passing:
            raise problem from None
        if wait is None:
            raise OutOfReach(*problem.problems, where=problem.where) from None
        time.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311 - not all clients at the same instant


def connect(context: str | None, namespace: str | None) -> Api:
    """As the kubeconfig says (KUBECONFIG, ~/.kube/config), or, without one, as a pod of the cluster, where there are
    no contexts. Talks to nobody yet.

    Without `namespace`: that of the context. Raises UserError when there is no such context.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    file = os.environ.get("KUBECONFIG")  # the client looks only once, when it is imported
    try:
        config.load_kube_config(file, context, settings)
        named, current = config.list_kube_config_contexts(file)
        chosen = next((one for one in named if one["name"] == context), current)
        default = chosen["context"].get("namespace")
    except (ConfigException, TypeError) as error:
        try:
            config.load_incluster_config(client_configuration=settings)
            default = context = None
        except ConfigException:
            known = refusal(str(error))
            raise UserError(
                known.line if known else f"no cluster: {one_line(str(error))}; set KUBECONFIG, or log in to one"
            ) from None
    settings.retries = False
    settings.connection_pool_maxsize = 128
    return Api(client.ApiClient(settings), namespace or default or "default", context)


def _error(error: Any, where: str) -> UserError:
    message = _message(error)
    if error.status == 403:
        known = refusal(message)
        return Forbidden(known.line if known else one_line(message), where=where)
    if error.status == 401:
        return as_error("Unauthorized", where)
    return as_error(message or f"HTTP {error.status} {error.reason}", where)


def _message(error: Any) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body or str(error.reason or "")
