"""Starting the training job that waits, suspended, for its round to be prepared: with the rights of this pod."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from caspi.errors import Unanswered, UserError

DIGEST = "caspi.dev/spec-digest"
QUEUE = "kueue.x-k8s.io/queue-name"
PATIENCE = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Seconds between tries: two minutes in all. Helm makes the job after the pod that runs this."""
TIMEOUT = (5, 30)
"""Seconds to connect, and for an answer."""

Job = dict[str, Any]
Answer = TypeVar("Answer")


def start(namespace: str, name: str, digest: str, queue: str | None, client: Any = None) -> str:
    """Let a suspended PyTorchJob run, or hand it to a queue, which then does; once is enough. What was done, in a line.

    `client` is a kubernetes ApiClient; without it, that of the pod's service account. Raises UserError when the job is
    missing, is another round's, or may not be touched; Unanswered when the API server does not answer.
    """
    jobs = _jobs(client)
    where = f"pytorchjob {namespace}/{name}"
    place = {
        "group": "kubeflow.org",
        "version": "v1",
        "namespace": namespace,
        "plural": "pytorchjobs",
        "name": name,
        "_request_timeout": TIMEOUT,
    }
    job = _retried(lambda: jobs.get_namespaced_custom_object(**place), where)
    check_same_round(job, digest, where)
    patch = change(job, queue)
    if patch is None:
        return f"{where} is {'in queue ' + queue if queue else 'started'} already"
    _retried(lambda: jobs.patch_namespaced_custom_object(**place, body=patch), where)
    return f"{where} is now {'in queue ' + queue if queue else 'started'}"


def check_same_round(job: Job, digest: str, where: str) -> None:
    """UserError unless the job trains the round with this digest."""
    annotated = (job["metadata"].get("annotations") or {}).get(DIGEST)
    if annotated != digest:
        is_of = f"trains round {annotated[:12]}" if annotated else f"has no annotation {DIGEST}"
        raise UserError(
            f"it {is_of}, and {digest[:12]} was prepared here; the job is left alone: install this round under a name "
            "of its own",
            where=where,
        )


def change(job: Job, queue: str | None) -> Job | None:
    """The merge patch that starts a job; None when there is nothing to do. A queue starts it by itself."""
    if queue:
        labels = job["metadata"].get("labels") or {}
        return None if labels.get(QUEUE) == queue else {"metadata": {"labels": {QUEUE: queue}}}
    suspended = ((job.get("spec") or {}).get("runPolicy") or {}).get("suspend")
    return {"spec": {"runPolicy": {"suspend": False}}} if suspended else None


def _jobs(client: Any) -> Any:
    try:
        import kubernetes
    except ImportError:
        raise UserError("--start needs the kubernetes client; pip install 'caspi[cluster]'") from None
    if client is None:
        settings = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_incluster_config(client_configuration=settings)
        except kubernetes.config.ConfigException as error:
            raise UserError(f"--start works in a pod with a service account's token ({error})") from None
        settings.retries = False  # the tries are ours
        client = kubernetes.client.ApiClient(settings)
    return kubernetes.client.CustomObjectsApi(client)


def _retried(call: Callable[[], Answer], where: str) -> Answer:
    """The answer of the API server; tried again where that may help."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    waits = iter(PATIENCE)
    while True:
        try:
            return call()
        except ApiException as error:
            if error.status not in (404, 408, 409, 425, 429) and error.status < 500:
                raise _refused(error, where) from None
            why = f"{error.status} {error.reason}"
            final: Exception = _refused(error, where) if error.status == 404 else Unanswered(f"{where}: {why}")
        except (HTTPError, OSError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            final = Unanswered(f"{where}: the API server is out of reach ({why})")
        wait = next(waits, None)
        if wait is None:
            raise final from None
        time.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311 - not all pods at the same instant


def _refused(error: Any, where: str) -> UserError:
    if error.status == 404:
        return UserError("there is none; was the release uninstalled? Install it again", where=where)
    if error.status in (401, 403):
        return UserError(
            f"the pod's service account may not get or patch it ({error.status}); see Role and RoleBinding of the gate",
            where=where,
        )
    return UserError(f"the API server refuses the change ({error.status} {error.reason}: {error.body})", where=where)
