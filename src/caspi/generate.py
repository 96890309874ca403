"""Files that are made from the code: `make generate` writes them, `make check` fails when they are old."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from caspi.charts import documents
from caspi.charts.serve import ServeValues
from caspi.charts.train import TrainValues
from caspi.charts.values import Values
from caspi.locks.model import Lock
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.values import Money

HOUSE = Path(__file__).parents[2]


def _schema(kind: type[BaseModel], title: str) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema(), "title": title}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _reference(kind: type[BaseModel], title: str, example: str) -> str:
    """A page with every field of a file: name, what it may be, its default, its docstring."""
    lines = [
        f"# {title}",
        "",
        "Made from the code by `make generate`; unknown fields are refused, with the nearest name.",
        "",
    ]
    lines += ["```yaml", (HOUSE / example).read_text(encoding="utf-8").rstrip(), "```", ""]
    seen: set[type[BaseModel]] = set()
    todo = [("", kind)]
    while todo:
        where, model = todo.pop(0)
        if model in seen:
            continue
        seen.add(model)
        lines += [
            f"## {where or 'the file'}",
            "",
            inspect.cleandoc(model.__doc__ or ""),
            "",
            "| field | what it may be | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {_allowed(field.annotation)} | {default} | {meaning} |")
            todo += [(f"{where}.{name}".lstrip("."), inner) for inner in _models(field.annotation)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [] if annotation is Money else [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _allowed(annotation: Any) -> str:
    if annotation is Money:
        return "money"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    parts = [_allowed(part) for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is list:
        return f"list of {parts[0]}".replace("of see", "see").replace("list see", "list, see")
    if get_origin(annotation) is dict:
        return f"{parts[0]}: {parts[1]}"
    if get_origin(annotation) is tuple:
        return f"[{', '.join(parts)}]"
    if get_origin(annotation) is Annotated:
        return parts[0]
    if parts:
        return " or ".join(dict.fromkeys(parts))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation) or ("see below" if _models(annotation) else str(annotation))


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    return json.dumps(value, ensure_ascii=False) if value is not None else "none"


def _chart(name: str, kind: type[Values], title: str) -> dict[str, Callable[[], str]]:
    """The three files of a chart that its values make."""
    folder = f"charts/{name}"
    return {
        f"{folder}/values.schema.json": lambda: documents.schema_file(kind, title),
        f"{folder}/values.yaml": lambda: documents.values_file(kind, title),
        f"{folder}/README.md": lambda: documents.readme((HOUSE / folder / "README.md").read_text("utf-8"), kind),
    }


def _pipeline() -> str:
    """The compiled pipeline. In a process of its own: kfp is needed for nothing else here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        command = [sys.executable, "-W", "ignore", "-m", "pipelines.caspi_round", "-o", str(path)]
        subprocess.run(command, cwd=HOUSE, check=True)
        return path.read_text(encoding="utf-8")


FILES: dict[str, Callable[[], str]] = {
    "docs/schema/round.schema.json": lambda: _schema(RoundSpec, "A Caspi round"),
    "docs/schema/cluster.schema.json": lambda: _schema(ClusterSpec, "Where a Caspi round runs"),
    "docs/schema/lock.schema.json": lambda: _schema(Lock, "A round, pinned by digests"),
    "docs/round-file.md": lambda: _reference(RoundSpec, "The round file", "rounds/hebrew-r2.yaml"),
    "docs/cluster-file.md": lambda: _reference(ClusterSpec, "The cluster file", "clusters/2xa100-40gb.yaml"),
    **_chart("caspi-train", TrainValues, "The values of caspi-train: one round, trained by an elastic PyTorchJob"),
    **_chart("caspi-serve", ServeValues, "The values of caspi-serve: the model of a round behind an HTTP service"),
    "pipelines/caspi-round.yaml": _pipeline,
}


def main(check: bool) -> int:
    old = []
    for name, make in FILES.items():
        path, text = HOUSE / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            old.append(name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    if old:
        print(f"{', '.join(old)}: not what the code makes; run `make generate` and commit", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
