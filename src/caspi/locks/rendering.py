"""What a chart makes of a lock's values, as one digest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from caspi.errors import UserError
from caspi.files import canonical_json, digest, folder_digest
from caspi.fleet.helm import find_helm
from caspi.fleet.values import values_text
from caspi.locks.model import CHART
from caspi.locks.repository import NotThere, Repository

KUBERNETES = "1.34.0"
"""What is rendered for: a fixed version, since each build of Helm believes in another one."""


@dataclass(frozen=True, slots=True)
class Chart:
    """charts/caspi-train of a commit."""

    folder: Path
    version: str
    digest: str


@contextmanager
def chart_at(repository: Repository, commit: str) -> Iterator[Chart]:
    """The chart of a commit, in a folder of its own while it is looked at. UserError when the commit has none."""
    with TemporaryDirectory(prefix="caspi-chart-") as place:
        try:
            repository.export(commit, CHART, Path(place))
            folder = Path(place) / CHART
            about = yaml.safe_load((folder / "Chart.yaml").read_text(encoding="utf-8"))
            version = str(about["version"])
        except (NotThere, OSError, yaml.YAMLError, KeyError, TypeError):
            raise UserError(
                f"{CHART} is not in commit {commit[:12]}: copy the chart into the repository and commit it; GitOps "
                "installs it from there"
            ) from None
        yield Chart(folder, version, folder_digest(folder))


def rendered(chart: Path | str, name: str, namespace: str, values: Mapping[str, Any]) -> str:
    """sha256 of all objects, whatever their order and Helm's own whitespace. UserError when the chart refuses."""
    helm = find_helm(namespace, None)
    options = ["--namespace", namespace, "--kube-version", KUBERNETES, "--values", "-"]
    command = [helm.program, "template", name, str(chart), *options]
    done = subprocess.run(command, input=values_text(values), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"the chart does not render: {said}")
    try:
        documents = [document for document in yaml.load_all(done.stdout, Loader=_Loader) if document]
    except yaml.YAMLError as error:
        raise UserError(f"the chart renders to what is not YAML: {' '.join(str(error).split())}") from None
    if not documents:
        raise UserError("the chart renders to nothing")
    return digest(sorted(canonical_json(document).decode() for document in documents))


class _Loader(yaml.SafeLoader):
    """Dates stay text, which JSON can hold."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
