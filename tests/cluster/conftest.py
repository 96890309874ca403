"""The cluster, its images, and a table of what was measured, printed at the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import Setting
from tests.cluster.kube import HERE, Kube, environment, make_namespace, run, table

MEASURED: list[tuple[str, str, str]] = []


@pytest.fixture(scope="session", autouse=True)
def _there() -> None:
    """One line when there is no cluster, instead of an error in every test."""
    try:
        environment()
        run("kubectl", "get", "nodes", seconds=30)
    except AssertionError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture(scope="module")
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of this test file, in which the restricted profile is enforced."""
    made = make_namespace(f"test-{Path(request.path).stem.removeprefix('test_').replace('_', '-')}")
    yield made
    if not os.environ.get("KEEP"):
        run("kubectl", "delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture(scope="session")
def train_image() -> str:
    """By digest."""
    return _image("train")


@pytest.fixture(scope="session")
def launcher_image() -> str:
    return _image("launcher")


def _image(name: str) -> str:
    """Built from this checkout and pushed to the cluster's registry; seconds when little has changed."""
    given = os.environ.get(f"CASPI_{name.upper()}_IMAGE")
    return given or str(run(HERE / "image", name, seconds=1800).stdout).split()[-1]


@pytest.fixture(scope="session")
def engine(train_image: str, launcher_image: str) -> Iterator[None]:
    """Docker's socket, or podman's in its place; the images are there under their names of this machine."""
    script = HERE / "podman"
    own = subprocess.run([script, "running"], check=False, capture_output=True).returncode != 0
    up = subprocess.run([script, "up"], stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", up.stdout.strip().removeprefix("export DOCKER_HOST="))
        yield
    if own:
        subprocess.run([script, "down"], check=True)


@pytest.fixture(scope="module")
def setting(kube: Kube, train_image: str, launcher_image: str, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(kube, train_image, launcher_image, tmp_path_factory.mktemp(kube.namespace))


@pytest.fixture
def measured() -> list[tuple[str, str, str]]:
    """Rows (what, figure, note) for the table at the end."""
    return MEASURED


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a process of `pytest -n` measured goes to the one that prints."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["measured"] = MEASURED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    MEASURED.extend(tuple(row) for row in getattr(node, "workeroutput", {}).get("measured", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURED:
        terminalreporter.write_line(table(("what", "measured", "note"), MEASURED))
