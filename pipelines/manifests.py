"""The pipeline as Kubernetes objects, for a Kubeflow that keeps its pipelines in the cluster's own API, and for GitOps.

    python -m pipelines.manifests --revision "$(git rev-parse HEAD)" [--namespace kubeflow] [-o FILE]

Prints a Pipeline and a PipelineVersion that is named by the commit: versions are immutable, so another commit is
another version, and the same one is the same bytes. It is made from caspi-round.yaml as it was compiled: no kfp needed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from caspi.files import write_text

API = "pipelines.kubeflow.org/v2beta1"
PACKAGE = Path(__file__).parent / "caspi-round.yaml"
SHOWN = 12
"""Digits of the commit in a name."""


def manifests(package: str, revision: str, namespace: str) -> list[dict[str, Any]]:
    """The objects of a compiled pipeline. ValueError when it is none, or the revision no full commit."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"--revision {revision}: write a full commit, as `git rev-parse HEAD` prints it")
    documents = list(yaml.safe_load_all(package))
    if not 1 <= len(documents) <= 2 or "pipelineInfo" not in documents[0]:
        raise ValueError("not a compiled pipeline: it has a pipeline spec, and a platform spec after it or none")
    about = documents[0]["pipelineInfo"]
    name, described = about["name"], {key: about[key] for key in ("description",) if key in about}
    version = f"{name}-{revision[:SHOWN]}"
    spec = {"displayName": version, "pipelineName": name, "pipelineSpec": documents[0], **described}
    if len(documents) == 2:
        spec["platformSpec"] = documents[1]
    return [
        _object("Pipeline", name, namespace, {"displayName": name, **described}),
        _object("PipelineVersion", version, namespace, spec),
    ]


def _object(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.manifests", description=__doc__.splitlines()[0])
    parser.add_argument("--revision", required=True, metavar="SHA", help="the commit that caspi-round.yaml is of")
    parser.add_argument("--namespace", default="kubeflow", help="of the objects (default: kubeflow)")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="another compiled pipeline")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of printing")
    given = parser.parse_args(arguments)
    try:
        made = manifests(given.package.read_text(encoding="utf-8"), given.revision, given.namespace)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2
    text = yaml.safe_dump_all(made, sort_keys=True, allow_unicode=True)
    if given.output:
        write_text(given.output, text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
