"""What the charts render from their ci/ value sets, and the goldens: `python -m tests.charts.rendering` rewrites them.

The golden of the first set of a chart is the whole of it; of each other set, how it differs from the first.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HOUSE = Path(__file__).parents[2]
HERE = Path(__file__).parent
TRAIN = HOUSE / "charts/caspi-train"
KUBERNETES = "1.34.0"
"""What is rendered for, as a helm that was not built as a release believes in a Kubernetes of 2020."""
TOOLS = Path(os.environ.get("CASPI_CLUSTER_HOME", Path.home() / ".cache/caspi/cluster")) / "bin"


def value_sets(chart: Path) -> list[Path]:
    return sorted((chart / "ci").glob("*.yaml"))


def release_of(values: Mapping[str, Any]) -> str:
    """A round's release has its name; another chart's may have any."""
    given = values.get("round")
    return str(given.get("name", "release")) if isinstance(given, dict) else "release"


def helm(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """helm of PATH, or of the local cluster's tools; without a kubeconfig."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{TOOLS}", "KUBECONFIG": "/dev/null"}
    command = ["helm", *(str(one) for one in arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)


def render(
    chart: Path, values: Mapping[str, Any], release: str | None = None, namespace: str = "asr"
) -> subprocess.CompletedProcess[str]:
    """`helm template`, which sees no cluster."""
    options = ("--namespace", namespace, "--kube-version", KUBERNETES, "--values", "-")
    return helm("template", release or release_of(values), chart, *options, stdin=yaml.safe_dump(dict(values)))


def rendered(chart: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects; an AssertionError with Helm's words when it refuses."""
    done = render(chart, values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def goldens(chart: Path) -> dict[Path, str]:
    """What the files in tests/charts/<chart>/golden should be."""
    first, *others = value_sets(chart)
    folder = HERE / chart.name / "golden"
    whole = _without_names(chart, first)
    made = {folder / f"{first.stem}.yaml": whole}
    for path in others:
        made[folder / f"{path.stem}.diff"] = _difference(whole, _without_names(chart, path))
    return made


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `values`, deeply; null takes a value away."""
    found = dict(values)
    for name, change in changes.items():
        if change is None:
            found.pop(name, None)
        elif isinstance(change, dict) and isinstance(found.get(name), dict):
            found[name] = merged(found[name], change)
        else:
            found[name] = change
    return found


def _without_names(chart: Path, path: Path) -> str:
    """A render without what differs in every one: the round's name, its digest, and the hashes in names of Jobs."""
    values = yaml.safe_load(path.read_text("utf-8"))
    done = render(chart, values)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"-(gate|prepare)-[0-9a-f]{8}\b", r"-\1-HASH", done.stdout)
    text = re.sub(r"(files-digest: )\S+", r"\1HASH", text)
    text = re.sub(r"(?<![:\w])[0-9a-f]{64}\b", "DIGEST", text)
    if isinstance(values.get("round"), dict):
        text = text.replace(values["round"]["digest"][:8], "DIGEST8")
    return re.sub(rf"(?<![\w-]){re.escape(release_of(values))}\b", "NAME", text)


def _difference(old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "first", "this", n=2, lineterm="")
    return "\n".join("@@" if line.startswith("@@") else line for line in list(lines)[2:]) + "\n"


def main() -> None:
    for chart in sorted(path.parent for path in HOUSE.glob("charts/*/Chart.yaml")):
        made = goldens(chart)
        folder = HERE / chart.name / "golden"
        folder.mkdir(parents=True, exist_ok=True)
        for path in set(folder.iterdir()) - set(made):
            path.unlink()
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
        print(f"wrote {len(made)} goldens of {chart.name}")


if __name__ == "__main__":
    main()
