"""A STAND-IN for the API of Kubeflow Pipelines, with faults on demand. No Kubeflow Pipelines runs behind it.

What it takes and gives comes from the published OpenAPI description, as `kfp-server-api` has it: routes, parameters
and types are read off the generated client when a test starts. Requests and answers that are not of these types are
written down in `violations`, and answered with 400. What the operations do is written here, from KFP's documentation:
names that are unique, and those that are not; times in seconds; a run that ends some time after it was terminated.

As a program it answers until it is stopped: python -m tests.standins.kfp_backend --port 8888 --kubeconfig FILE
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tests.standins.answering import answering
from tests.standins.kube_objects import Objects, serve_objects

Json = dict[str, Any]
HANG = 5.0


@dataclass(frozen=True)
class Operation:
    """One of the OpenAPI description."""

    name: str
    method: str
    path: str
    in_path: dict[str, str]
    """Name -> type."""
    query: dict[str, str]
    body: str | None
    file: str | None
    answer: str

    @property
    def pattern(self) -> re.Pattern[str]:
        literal = re.split(r"\{(\w+)\}", self.path)
        parts = (re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^/:]+)" for i, part in enumerate(literal))
        return re.compile("".join(parts))


def published() -> list[Operation]:
    """All operations, from what the generated client does when its methods are called."""
    seen: list[Json] = []

    class Recording(kfp_server_api.ApiClient):  # type: ignore[misc]
        def call_api(self, path: str, method: str, path_params: Json, query: Any, header: Json, **more: Any) -> None:
            seen.append({"path": path, "method": method, "in_path": path_params, "query": query, **more})

    found = []
    for kind in (getattr(kfp_server_api, name) for name in dir(kfp_server_api) if name.endswith("Api")):
        for name in dir(kind):
            if name.startswith("_") or name.endswith("_with_http_info"):
                continue
            types = dict(re.findall(r":type (\w+): (\S+)", getattr(kind, name).__doc__))
            types = {one: type for one, type in types.items() if one != "async_req" and not one.startswith("_")}
            getattr(kind(Recording()), name)(**{one: f"<{one}>" for one in types})
            call = seen.pop()
            assert not seen
            plain = {f"<{one}>": type for one, type in types.items()}
            files = list(call["files"] or {})
            found.append(
                Operation(
                    name.removesuffix("_"),
                    call["method"],
                    call["path"],
                    {wire: plain[given] for wire, given in (call["in_path"] or {}).items()},
                    {wire: plain[given] for wire, given in call["query"]},
                    plain[call["body"]] if call["body"] else None,
                    files[0] if files else None,
                    call["response_type"],
                )
            )
    return found


def misfits(value: Any, type: str, where: str = "$") -> list[str]:
    """What of a JSON value is not of a published type."""
    if value is None or type == "object":
        return []
    if match := re.fullmatch(r"list\[(.*)\]", type):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [one for i, part in enumerate(value) for one in misfits(part, match[1], f"{where}[{i}]")]
    if match := re.fullmatch(r"dict\(str, (.*)\)", type):
        if not isinstance(value, dict):
            return [f"{where}: no map"]
        return [one for name, part in value.items() for one in misfits(part, match[1], f"{where}.{name}")]
    plain: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str}
    if type in plain:
        if not isinstance(value, plain[type]) or (type == "int" and isinstance(value, bool)):
            return [f"{where}: {value!r} is no {type}"]
        if type == "datetime" and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value):
            return [f"{where}: {value!r} is no time"]
        return []
    model = getattr(kfp_server_api.models, type)
    if hasattr(model, "allowable_values"):
        return [] if value in model.allowable_values else [f"{where}: {value!r} is none of {type}"]
    if not isinstance(value, dict):
        return [f"{where}: no {type}"]
    types = {wire: model.openapi_types[name] for name, wire in model.attribute_map.items()}
    unknown = [f"{where}.{name}: not in {type}" for name in value if name not in types]
    return unknown + [
        one for name, part in value.items() if name in types for one in misfits(part, types[name], f"{where}.{name}")
    ]


class Refused(Exception):
    """Answered with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Backend:
    """What the stand-in has and what it saw."""

    token: str | None = None
    """The one that is taken; None: nobody is asked."""
    readers: tuple[str, ...] = ()
    """Tokens that may only read."""
    multi_user: bool = False
    terminates: str = "at once"
    """`at once`, `never`, or `when told`: what becomes of a run that is terminated."""
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    """Pattern of an operation's name -> what the next requests get: a status; `hang`; `page` for HTML; `cut` for a
    connection that ends without an answer; `lost` for an answer that is lost after the work was done."""
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Operation -> what somebody else does just before it is done, once."""
    hidden: set[str] = field(default_factory=set)
    """Operations that this version of the backend does not have."""
    page: int = 100
    """At most so many items in a list."""
    experiments: dict[str, Json] = field(default_factory=dict)
    pipelines: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Names of operations."""
    tokens: set[str] = field(default_factory=set)
    bodies: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    url: str = ""
    operations: list[Operation] = field(default_factory=published)

    def move(self, run: str, state: str, error: str = "", **tasks: str) -> None:
        """Move a run, and its steps, as the backend would; `train="FAILED: exit code 5"`."""
        one = self.runs[run]
        one["state"] = state
        if state in ("SUCCEEDED", "FAILED", "CANCELED"):
            one["finished_at"] = _now()
        if error:
            one["error"] = {"code": 2, "message": error}
        details = []
        for name, told in tasks.items():
            task, _, problem = told.partition(": ")
            wire = name.replace("_", "-")
            made: Json = {"run_id": run, "task_id": f"{run}-{wire}", "display_name": wire, "state": task}
            made |= {
                "start_time": one["created_at"],
                "end_time": _now() if task != "RUNNING" else "1970-01-01T00:00:00Z",
            }
            if problem:
                pod = f"{run}-{wire}-executor"
                made["child_tasks"] = [{"pod_name": pod}, {"pod_name": f"{run}-free"}]
                history = [{"update_time": _now(), "state": task, "error": {"code": 2, "message": problem}}]
                details.append({"task_id": pod, "display_name": "executor", "state": task, "state_history": history})
            details.append(made)
        one["run_details"] = {"task_details": details}

    def add_run(self, name: str, state: str = "RUNNING", ago: float = 60, **parameters: Any) -> str:
        """A run that somebody else made so many seconds ago."""
        run = str(uuid.uuid4())
        made = {"run_id": run, "display_name": name, "created_at": _now(-ago), "state": state}
        self.runs[run] = {**made, "storage_state": "AVAILABLE", "runtime_config": {"parameters": parameters}}
        return run

    def answer(self, name: str, path: Json, query: Json, body: Any) -> Json:
        """Do the work of an operation. Raises Refused."""
        work = getattr(self, f"_{name}", None)
        if work is None:
            raise Refused(501, f"the stand-in does not do {name}")
        if other := self.before.pop(name, None):
            other()
        done: Json = work(path, query, body)
        return done

    def _healthz_service_get_healthz(self, path: Json, query: Json, body: Any) -> Json:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def _experiment_service_list_experiments(self, path: Json, query: Json, body: Any) -> Json:
        return self._listed("experiments", self.experiments, query, self._whose(query, "experiments"))

    def _experiment_service_create_experiment(self, path: Json, query: Json, body: Json) -> Json:
        self._named("experiment", self.experiments, body)
        return self._kept(self.experiments, "experiment_id", {**body, "storage_state": "AVAILABLE"})

    def _pipeline_service_list_pipelines(self, path: Json, query: Json, body: Any) -> Json:
        return self._listed("pipelines", self.pipelines, query, lambda one: True)

    def _pipeline_service_create_pipeline(self, path: Json, query: Json, body: Json) -> Json:
        self._named("pipeline", self.pipelines, body)
        return self._kept(self.pipelines, "pipeline_id", body)

    def _pipeline_service_list_pipeline_versions(self, path: Json, query: Json, body: Any) -> Json:
        wanted = path["pipeline_id"]
        return self._listed("pipeline_versions", self.versions, query, lambda one: one["pipeline_id"] == wanted)

    def _upload_pipeline_version(self, path: Json, query: Json, body: bytes) -> Json:
        pipeline = query["pipelineid"]
        if pipeline not in self.pipelines:
            raise Refused(404, f"Pipeline {pipeline} not found")
        spec = _compiled(body)
        made = {
            "pipeline_id": pipeline,
            "name": query["name"],
            "display_name": query.get("display_name", query["name"]),
        }
        self._named("version", {id: one for id, one in self.versions.items() if one["pipeline_id"] == pipeline}, made)
        return self._kept(self.versions, "pipeline_version_id", {**made, "pipeline_spec": spec})

    def _run_service_list_runs(self, path: Json, query: Json, body: Any) -> Json:
        return self._listed("runs", self.runs, query, self._whose(query, "runs"))

    def _run_service_get_run(self, path: Json, query: Json, body: Any) -> Json:
        run = self._of_run(path)
        if run["state"] == "CANCELING" and self.terminates == "at once":
            run |= {"state": "CANCELED", "finished_at": _now()}
        return run

    def _run_service_create_run(self, path: Json, query: Json, body: Json) -> Json:
        reference, given = body["pipeline_version_reference"], body["runtime_config"]["parameters"]
        if body["experiment_id"] not in self.experiments:
            raise Refused(404, f"Experiment {body['experiment_id']} not found")
        version = self.versions.get(reference["pipeline_version_id"])
        if version is None or version["pipeline_id"] != reference["pipeline_id"]:
            raise Refused(404, f"PipelineVersion {reference['pipeline_version_id']} not found")
        spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
        _check_parameters(spec["root"]["inputDefinitions"]["parameters"], given)
        return self._kept(self.runs, "run_id", {**body, "state": "PENDING", "storage_state": "AVAILABLE"})

    def _run_service_terminate_run(self, path: Json, query: Json, body: Any) -> Json:
        run = self._of_run(path)
        if run["state"] in ("SUCCEEDED", "FAILED", "CANCELED"):
            raise Refused(400, f"Run {run['run_id']} has ended")
        if self.terminates != "never":
            run["state"] = "CANCELING"
        return {}

    def _of_run(self, path: Json) -> Json:
        try:
            return self.runs[path["run_id"]]
        except KeyError:
            raise Refused(404, f"Run {path['run_id']} not found") from None

    def _whose(self, query: Json, what: str) -> Callable[[Json], bool]:
        """Runs and experiments belong to a namespace where there are several users, and to none where not."""
        if self.multi_user and not query.get("namespace"):
            raise Refused(400, f"Invalid input error: a namespace is needed to list {what} in multi-user mode")
        if not self.multi_user and query.get("namespace"):
            raise Refused(400, f"Invalid input error: in single-user mode, {what} can't be listed by namespace")
        if not self.multi_user:
            return lambda one: True
        own = {id for id, one in self.experiments.items() if one.get("namespace") == query["namespace"]}
        return lambda one: one.get("experiment_id") in own

    def _named(self, kind: str, there: dict[str, Json], body: Json) -> None:
        if any(one["display_name"] == body["display_name"] for one in there.values()):
            raise Refused(409, f"{kind} {body['display_name']} already exists")

    def _kept(self, there: dict[str, Json], key: str, body: Json) -> Json:
        id = str(uuid.uuid4())
        there[id] = {**body, key: id, "created_at": _now()}
        return there[id]

    def _listed(self, name: str, there: dict[str, Json], query: Json, of: Callable[[Json], bool]) -> Json:
        found = [one for one in there.values() if of(one)]
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
            wanted, key = predicate["string_value"], predicate["key"]
            tests = {"EQUALS": lambda one: one == wanted, "IS_SUBSTRING": lambda one: wanted in one}  # noqa: B023
            found = [one for one in found if tests[predicate["operation"]](one[key])]
        start, size = int(query.get("page_token") or 0), min(int(query.get("page_size") or 10), self.page)
        page: Json = {name: found[start : start + size], "total_size": len(found)}
        if start + size < len(found):
            page["next_page_token"] = str(start + size)
        return page


@contextmanager
def serve(state: Backend, port: int = 0) -> Iterator[Backend]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._take()

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

        def _take(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            for one in state.operations:
                match = one.pattern.fullmatch(unquote(url.path))
                if match and one.method == self.command and one.name not in state.hidden:
                    break
            else:
                if not state.hidden:
                    state.violations.append(f"{self.command} {url.path}: no such route")
                return self._send(404, {"code": 5, "message": "Not Found", "details": []})
            with lock:
                state.asked.append(one.name)
                state.bodies.append(f"{self.path} {data.decode(errors='replace')}")
                waiting = next((f for p, f in state.faults.items() if f and re.search(p, one.name)), [])
                fault = waiting.pop(0) if waiting else None
            if fault == "hang":
                time.sleep(HANG)
            elif fault == "page":
                return self._send_page()
            elif isinstance(fault, int):
                return self._send(fault, {"code": 14, "message": "planted", "details": []})
            if fault not in ("cut", "hang"):
                with lock:
                    status, answer = self._answer(one, match.groupdict(), dict(parse_qsl(url.query)), data)
                if fault is None:
                    return self._send(status, answer)
            self.close_connection = True
            return None

        def _answer(self, one: Operation, path: Json, query: Json, data: bytes) -> tuple[int, Json]:
            try:
                self._check_token(one)
                answer = state.answer(one.name, path, query, self._checked(one, query, data))
                status, type = 200, one.answer
            except Refused as error:
                codes = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 501: 12}
                status, type = error.status, "GoogleRpcStatus"
                answer = {"code": codes[error.status], "message": error.message, "details": []}
            state.violations.extend(f"answer of {one.name}: {wrong}" for wrong in misfits(answer, type))
            return status, answer

        def _check_token(self, one: Operation) -> None:
            sent = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            if sent:
                state.tokens.add(sent)
            if state.token is not None and sent not in (state.token, *state.readers):
                raise Refused(401, "Unauthenticated")
            if one.method != "GET" and sent in state.readers:
                raise Refused(403, "User 'reader' is not authorized to do that")

        def _checked(self, one: Operation, query: Json, data: bytes) -> Any:
            wrong = [f"query {name}: not in {one.name}" for name in query if name not in one.query]
            for name, type in one.query.items():
                if type == "int" and name in query and not query[name].isdecimal():
                    wrong.append(f"query {name}: no int")
            if "filter" in query:
                wrong += misfits(json.loads(query["filter"]), "V2beta1Filter", "filter")
            body: Any = None
            if one.file:
                kind = f"Content-Type: {self.headers.get('Content-Type')}\r\n\r\n".encode()
                parts = {
                    part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                    for part in BytesParser().parsebytes(kind + data).walk()
                    if not part.is_multipart()
                }
                if list(parts) != [one.file]:
                    wrong.append(f"form: {list(parts)}, not {one.file}")
                body = parts.get(one.file)
            elif one.body:
                body = json.loads(data)
                wrong += misfits(body, one.body, "body")
            elif data:
                wrong.append("body: none is taken")
            if wrong:
                state.violations.extend(f"{one.name}: {line}" for line in wrong)
                raise Refused(400, "; ".join(wrong))
            return body

        def _send(self, status: int, value: Json) -> None:
            self._write(status, json.dumps(value).encode(), "application/json")

        def _send_page(self) -> None:
            self._write(200, b"<!doctype html><title>Log in</title>", "text/html")

        def _write(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with answering(Handler, port) as state.url:
        yield state


def _compiled(data: bytes) -> Json:
    """A pipeline as KFP reads it: IR of kfp 2, nothing unknown in it."""
    try:
        documents = list(yaml.load_all(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        if len(documents) > 1:
            json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    except (yaml.YAMLError, json_format.ParseError, IndexError, AttributeError) as error:
        raise Refused(400, f"Failed to parse the pipeline spec: {error}") from None
    spec: Json = documents[0]
    return spec


def _check_parameters(wanted: Json, given: Json) -> None:
    kinds = {"STRING": str, "STRUCT": dict, "LIST": list, "BOOLEAN": bool, "NUMBER_INTEGER": int}
    for name, value in given.items():
        if name not in wanted:
            raise Refused(400, f"Invalid input error: parameter {name} is not in the pipeline")
        if not isinstance(value, kinds[wanted[name]["parameterType"]]):
            raise Refused(400, f"Invalid input error: parameter {name} is no {wanted[name]['parameterType']}")
    for name, one in wanted.items():
        if name not in given and "defaultValue" not in one and not one.get("isOptional"):
            raise Refused(400, f"Invalid input error: parameter {name} is missing")


def _now(seconds: float = 0) -> str:
    return datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for the API of Kubeflow Pipelines.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="written here: of an empty Kubernetes")
    chosen = parser.parse_args()
    with serve(Backend(), chosen.port) as backend, serve_objects(Objects()) as objects:
        objects.write_kubeconfig(chosen.kubeconfig)
        print(backend.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
