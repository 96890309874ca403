"""Argo CD on the cluster, the repository that it reads, and a namespace in which its rounds train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import MEASURED, _there, launcher_image, measured, train_image
from tests.cluster.jobs import Setting
from tests.cluster.kube import Kube, make_namespace, run, table
from tests.gitops import argo

__all__ = ["_there", "launcher_image", "measured", "train_image"]
NAMESPACE = "gitops"


@pytest.fixture(scope="session")
def bare() -> Path:
    """Installs Argo CD unless it is there; the folder of the repository that it reads."""
    printed = str(run(argo.HERE / "install", seconds=1800).stdout)
    return Path(printed.split()[-1]) / "rounds.git"


@pytest.fixture(scope="session")
def kube(bare: Path) -> Iterator[Kube]:
    """The namespace of the rounds: new, empty, under the restricted profile."""
    argo.forget_rounds()
    made = make_namespace(NAMESPACE)
    yield made
    if not argo.keep():
        argo.forget_rounds()
        run("kubectl", "delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture(scope="session")
def setting(kube: Kube, train_image: str, launcher_image: str, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(kube, train_image, launcher_image, tmp_path_factory.mktemp("setting"))


@pytest.fixture(scope="session")
def repository(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> argo.Repository:
    return argo.make_repository(bare, tmp_path_factory.mktemp("git") / "rounds")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURED:
        terminalreporter.write_line(table(("what", "measured", "note"), MEASURED))
