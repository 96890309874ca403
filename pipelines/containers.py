"""Steps in containers, by kfp.local's Docker runner: as pods would run them, and ended as they really ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docker.models.containers import Container, ContainerCollection
from docker.types import Mount
from kfp import local


@dataclass(frozen=True, slots=True)
class Ended:
    """A step's container, after its end."""

    step: str
    code: int
    log: str


def docker_runner(mounts: Sequence[Mount], environment: Mapping[str, str] = {}, **more: Any) -> local.DockerRunner:
    """A runner whose containers write to /tmp and `mounts`, and nowhere else. `more` is docker-py's."""
    return local.DockerRunner(
        entrypoint=["/usr/bin/env"],  # a pod's command replaces the image's entrypoint; Docker's only follows it
        environment={"OMP_NUM_THREADS": "1", "HOME": "/tmp", **environment},
        mounts=list(mounts),
        network_mode="host",
        read_only=True,
        shm_size="1g",
        tmpfs={"/tmp": ""},
        **more,
    )


def this_user() -> str:
    """For files that this machine's user is to own; without it they are the images' user's."""
    return f"{os.getuid()}:{os.getgid()}"


@contextmanager
def ends_known() -> Iterator[Callable[[], list[Ended]]]:
    """Keep containers until they were asked how they ended; yields what asks all since the last time.

    kfp has them removed as they end, and takes one that is gone for one that succeeded (kubeflow/pipelines#13332): with
    podman that is every step that fails.
    """
    kept: list[tuple[str, Container]] = []
    start = ContainerCollection.run

    def keep(containers: ContainerCollection, *arguments: Any, **options: Any) -> Container:
        options.pop("auto_remove")
        command = options["command"]
        container = start(containers, *arguments, **options)
        kept.append((command[command.index("--function_to_execute") + 1], container))
        return container

    def ended() -> list[Ended]:
        found = []
        for step, container in kept:
            code = int(container.wait()["StatusCode"])
            found.append(Ended(step, code, container.logs().decode(errors="replace")))
            container.remove(force=True)
        kept.clear()
        return found

    ContainerCollection.run = keep
    try:
        yield ended
    finally:
        ContainerCollection.run = start
        ended()
