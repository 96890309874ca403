"""Kubeflow Pipelines by its own client: pipelines, versions, experiments, runs. The only module that imports it.

What only reads is tried again. What makes something is not: an answer that was lost may be one to work that was done,
so its caller looks at what is there (caspi.pipeline.submission).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.fleet.refusals import one_line
from caspi.pipeline.answers import NO_API, Gone, NoAnswer, There, refused, unreachable
from caspi.pipeline.state import Run, Task
from caspi.spec.cluster import Pipelines

TIMEOUT = (5, 60)
"""Seconds to connect, and between two pieces of an answer."""
PATIENCE = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries."""
PAGE = 100


@dataclass(frozen=True, slots=True)
class Backend:
    """Kubeflow Pipelines for one user."""

    client: Any
    """kfp.Client."""
    endpoint: str
    namespace: str | None = None
    """None where the backend knows no users."""

    def url(self, run: str) -> str:
        """The page of a run in the UI."""
        return f"{self.endpoint}/#/runs/details/{run}"

    def runs(self, round: str | None = None) -> list[Run]:
        """Runs that are named like those of a round, or of any; the oldest first, without their tasks."""
        pattern = re.compile(rf"{re.escape(round) if round else '[a-z0-9-]+'}-[0-9a-f]{{8}}")
        pages = self._pages(
            self.client.runs.run_service_list_runs,
            "runs",
            filter=self._filter("IS_SUBSTRING", f"{round}-") if round else None,
            **self._whose(),
        )
        found = [_run(one) for one in pages if pattern.fullmatch(one.display_name or "")]
        return sorted(found, key=lambda run: (run.created, run.id))

    def run(self, id: str) -> Run:
        """With its tasks. Raises Gone."""
        return _run(self._call(self.client.runs.run_service_get_run, id))

    def pipeline(self, name: str) -> str | None:
        """The id of the pipeline called so."""
        whose = self._whose() if self.namespace else {}
        pages = self._pages(
            self.client.pipelines.pipeline_service_list_pipelines,
            "pipelines",
            filter=self._filter("EQUALS", name),
            **whose,
        )
        return next((str(one.pipeline_id) for one in pages if name in (one.display_name, one.name)), None)

    def version(self, pipeline: str, name: str) -> str | None:
        """The id of a version of a pipeline."""
        method = self.client.pipelines.pipeline_service_list_pipeline_versions
        pages = self._pages(method, "pipeline_versions", pipeline, filter=self._filter("EQUALS", name))
        return next((str(one.pipeline_version_id) for one in pages if name in (one.display_name, one.name)), None)

    def experiment(self, name: str) -> str | None:
        """The id of the experiment called so."""
        pages = self._pages(
            self.client.experiments.experiment_service_list_experiments,
            "experiments",
            filter=self._filter("EQUALS", name),
            **self._whose(),
        )
        return next((str(one.experiment_id) for one in pages if one.display_name == name), None)

    def make_pipeline(self, name: str, description: str) -> None:
        """A pipeline without a version: uploading it would name the first one after the pipeline."""
        models = self.client.api_models
        made = models.V2beta1Pipeline(name=name, display_name=name, description=description, namespace=self.namespace)
        self._once(self.client.pipelines.pipeline_service_create_pipeline, made)

    def make_version(self, pipeline: str, name: str, package: Path) -> None:
        """Upload a compiled pipeline. Raises UserError when it is none that this backend takes."""
        try:
            method = self.client.pipeline_uploads.upload_pipeline_version
            self._once(method, str(package), pipelineid=pipeline, name=name, display_name=name)
        except (NoAnswer, There, Gone):
            raise
        except UserError as error:
            problem = one_line("; ".join(error.problems))
            raise UserError(f"the pipeline {package} is not taken: {problem}", where=self.endpoint) from None

    def make_experiment(self, name: str) -> None:
        made = self.client.api_models.V2beta1Experiment(display_name=name, namespace=self.namespace)
        self._once(self.client.experiments.experiment_service_create_experiment, made)

    def make_run(self, name: str, experiment: str, pipeline: str, version: str, parameters: dict[str, Any]) -> Run:
        models = self.client.api_models
        reference = models.V2beta1PipelineVersionReference(pipeline_id=pipeline, pipeline_version_id=version)
        made = models.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            pipeline_version_reference=reference,
            runtime_config=models.V2beta1RuntimeConfig(parameters=parameters),
        )
        return _run(self._once(self.client.runs.run_service_create_run, made))

    def terminate(self, id: str) -> None:
        """Ask that a run ends; one that has is as well."""
        try:
            self._call(self.client.runs.run_service_terminate_run, id)
        except Gone:
            return
        except UserError:
            if not self.run(id).active:
                return
            raise

    def _whose(self) -> dict[str, Any]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _filter(self, operation: str, name: str) -> str:
        models = self.client.api_models
        predicate = models.V2beta1Predicate(operation=operation, key="display_name", string_value=name)
        plain = _api(self.client).sanitize_for_serialization(models.V2beta1Filter(predicates=[predicate]))
        return json.dumps(plain)

    def _pages(self, method: Callable[..., Any], field: str, *where: str, **query: Any) -> Iterator[Any]:
        query = {"page_size": PAGE, **{name: value for name, value in query.items() if value is not None}}
        while True:
            page = self._call(method, *where, **query)
            yield from getattr(page, field) or []
            if not page.next_page_token:
                return
            query["page_token"] = page.next_page_token

    def _once(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return call(method, self.endpoint, *given, patience=(), **named)

    def _call(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return call(method, self.endpoint, *given, **named)


def call(
    method: Callable[..., Any], where: str, *given: Any, patience: tuple[float, ...] | None = None, **named: Any
) -> Any:
    """Call a method of the generated client. Raises NoAnswer, There, Gone, UserError: each is one line."""
    from kfp_server_api.exceptions import ApiException  # type: ignore[import-untyped,unused-ignore]
    from urllib3.exceptions import HTTPError

    waits = iter(PATIENCE if patience is None else patience)
    while True:
        try:
            answer = method(*given, _request_timeout=TIMEOUT, **named)
        except ApiException as error:
            problem = refused(int(error.status or 0), str(error.body or error.reason or ""), where)
        except (HTTPError, OSError) as error:
            problem = unreachable(str(error), where)
        except ValueError:  # JSON of another shape
            problem = UserError(NO_API, where=where)
        else:
            if "json" in (_api_of(method).last_response.getheader("content-type") or "json"):
                return answer
            problem = UserError(NO_API, where=where)  # the pages of a UI, or of a login
        wait = next(waits, None)
        if wait is None or not isinstance(problem, NoAnswer):
            raise problem from None
        time.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311 - not all clients at the same instant


def connect(settings: Pipelines) -> Backend:
    """The backend at KFP_ENDPOINT, or else of the cluster file, with the token KFP_TOKEN. Raises UserError."""
    endpoint = (os.environ.get("KFP_ENDPOINT") or settings.endpoint or "").strip().rstrip("/")
    if not endpoint:
        raise UserError(
            "where Kubeflow Pipelines answers is missing: kubernetes: {pipelines: {endpoint: "
            "https://kubeflow.example.com/pipeline}} in the cluster file, or KFP_ENDPOINT"
        )
    if not re.fullmatch(r"https?://[^\s@/]+[^\s@]*", endpoint):
        raise UserError(
            "KFP_ENDPOINT: expected an address such as https://kubeflow.example.com/pipeline, without a password"
        )
    token = (os.environ.get("KFP_TOKEN") or "").strip()
    if re.search(r"[^!-~]", token):  # such a header would be refused with the token in the message
        raise UserError("KFP_TOKEN is no token: it has spaces, line ends or other letters in it")
    try:
        import kfp
    except ImportError:
        raise UserError("kfp is not installed; install the extra caspi[pipelines]") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A namespace keeps the client from asking for one with its own retries. Every call here says whose it means.
        client = kfp.Client(
            host=endpoint,
            existing_token=token or None,
            namespace="caspi",
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE") or None,
        )
    _api(client).rest_client.pool_manager.connection_pool_kw["retries"] = False  # `call` does it, and knows when
    health = call(client.healthzs.healthz_service_get_healthz, endpoint)
    if health.multi_user and not settings.namespace:
        raise UserError(
            "this backend is for several users: say whose runs these are, kubernetes: {pipelines: {namespace: ...}} in "
            "the cluster file, or --namespace",
            where=endpoint,
        )
    return Backend(client, endpoint, settings.namespace if health.multi_user else None)


def _run(one: Any) -> Run:
    details = one.run_details.task_details if one.run_details else None
    parameters = one.runtime_config.parameters if one.runtime_config else None
    return Run(
        id=str(one.run_id),
        name=str(one.display_name),
        state=_state(one.state),
        created=_moment(one.created_at) or datetime.now(UTC),
        finished=_moment(one.finished_at),
        archived=one.storage_state == "ARCHIVED",
        parameters=dict(parameters or {}),
        error=_error(one),
        tasks=tuple(_task(task) for task in details or []),
    )


def _task(one: Any) -> Task:
    return Task(
        id=str(one.task_id),
        name=str(one.display_name or ""),
        state=_state(one.state),
        started=_moment(one.start_time),
        finished=_moment(one.end_time),
        error=_error(one),
        children=tuple(str(child.task_id or child.pod_name) for child in one.child_tasks or []),
    )


def _state(state: str | None) -> str:
    return "" if state in (None, "RUNTIME_STATE_UNSPECIFIED") else str(state)


def _error(one: Any) -> str:
    """Of a run or a task; where it has none itself, that of its last state."""
    last = (one.state_history or [None])[-1]
    told = one.error or (last.error if last else None)
    return str(told.message or "") if told else ""


def _moment(moment: datetime | None) -> datetime | None:
    """Times that are not known come as 1970."""
    if moment is None or moment.timestamp() <= 0:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _api(client: Any) -> Any:
    return _api_of(client.runs.run_service_get_run)


def _api_of(method: Any) -> Any:
    """The one ApiClient behind all methods of a kfp.Client."""
    return method.__self__.api_client
