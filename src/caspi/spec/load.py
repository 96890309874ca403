"""YAML file -> spec, with every problem at once, each on one line with its field and the way out."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from caspi.errors import UserError
from caspi.spec.cluster import ClusterSpec
from caspi.spec.round import RoundSpec
from caspi.spec.values import Frozen

Spec = TypeVar("Spec", bound=Frozen)


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1, except: 5e-5 is a number, a key that stands twice is an error, dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _no_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is not text: quote it", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'"{key}" stands twice', key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _no_duplicates)


def load_round(path: Path) -> RoundSpec:
    return _load(path, RoundSpec)


def load_cluster(path: Path) -> ClusterSpec:
    return _load(path, ClusterSpec)


def parse(values: object, kind: type[Spec], where: str) -> Spec:
    """Validate plain values as a spec; UserError lists every problem."""
    if not isinstance(values, dict):
        raise UserError(f"expected a mapping of fields, got {_kind_of(values)}", where=where)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [line for detail in error.errors() for line in _problem(detail, kind)]
        raise UserError(*dict.fromkeys(problems), where=where) from None


def _load(path: Path, kind: type[Spec]) -> Spec:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file; `caspi init NAME` writes a first round", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder; give the YAML file", where=str(path)) from None
    except PermissionError:
        raise UserError("may not be read: check its permissions", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start}); save it as UTF-8", where=str(path)) from None
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{line}not valid YAML: {error.problem}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}", where=str(path)) from None
    except RecursionError:
        raise UserError("not valid YAML: nested too deeply", where=str(path)) from None
    if values is None:
        raise UserError("is empty; `caspi init NAME` writes a first round", where=str(path))
    return parse(values, kind, str(path))


def _problem(detail: ErrorDetails, kind: type[BaseModel]) -> list[str]:
    """The lines that say what one pydantic error means to the one who wrote the file."""
    where = _place(detail["loc"])
    value, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return [f"{where}: missing{_example(detail['loc'])}"]
        case "extra_forbidden":
            return [f"{where}: no such field{_closest(detail['loc'], kind)}"]
        case "union_tag_invalid":
            return [f'{where}.family = "{context.get("tag")}": unknown; families are {context.get("expected_tags")}']
        case "union_tag_not_found":
            return [f'{where}.family: missing; for example "family: qwen3-asr"']
        case "value_error":
            message = str(context["error"])
            lines = message.split("\n")
            if not where or (not isinstance(value, dict | BaseModel) and len(lines) == 1):
                return [f"{where} = {_shown(value)}: {line}" if where else line for line in lines]
            return [f"{where}: {line}" for line in lines]
        case "string_pattern_mismatch":
            return [f"{where} = {_shown(value)}: {_pattern(str(context.get('pattern')))}"]
        case "literal_error":
            return [f"{where} = {_shown(value)}: unknown; it is one of {context['expected']}".replace(" or ", ", ")]
        case _:
            message = detail["msg"].replace("Input should be", "it should be").replace("Value error, ", "")
            return [f"{where} = {_shown(value)}: {message[0].lower()}{message[1:]}"]


_PATTERNS = {
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": "use lower-case letters, digits and dashes",
    r"^[\w][\w.-]*/[\w][\w.-]*$": "write a repository as owner/name",
    r"^[A-Z][A-Za-z]*( [A-Z][A-Za-z]*)*$": 'write the language in English with a capital, for example "Hebrew"',
    r"^[A-Za-z0-9_-]{1,20}$": "use up to 20 letters, digits, dashes and underscores",
    r"^[A-Z]{3}$": 'use a currency code such as "USD"',
}


def _pattern(pattern: str) -> str:
    return _PATTERNS.get(pattern, f"it should match {pattern}")


_EXAMPLES = {
    "round": "round: hebrew-r1",
    "model": "model: {family: qwen3-asr, base: Qwen/Qwen3-ASR-1.7B, revision: ..., language: Hebrew}",
    "data": "data: {sources: [{name: crowd, path: data/crowd}]}",
    "train": "train: {global_batch: 64, phases: [{name: A, epochs: 3, rates: {all: 2e-5}}]}",
    "benchmark": "benchmark: {sets: [{name: test, path: data/test}]}",
    "global_batch": "global_batch: 64",
    "phases": "phases: [{name: A, epochs: 3, rates: {all: 2e-5}}]",
    "sources": "sources: [{name: crowd, path: data/crowd}]",
    "sets": "sets: [{name: test, path: data/test}]",
    "language": "language: Hebrew",
}


def _example(location: tuple[int | str, ...]) -> str:
    example = _EXAMPLES.get(str(location[-1]))
    return f"; for example `{example}`" if example else ""


def _closest(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """`; did you mean X?`, or the fields there are."""
    fields = _fields_at(location[:-1], kind)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; it has {', '.join(fields)}" if fields else ""


def _fields_at(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[-1]]
            elif options := [o for o in node.get("anyOf", node.get("oneOf", [])) if o.get("type") != "null"]:
                node = next((o for o in options if "$ref" in o or "items" in o or "properties" in o), options[0])
            else:
                return node

    union: dict[str, Any] = {}
    node = resolve(schema)
    for part in location:
        if isinstance(part, int):
            node = resolve(node.get("items", {}))
        elif part in node.get("properties", {}):
            union = node["properties"][part]
            node = resolve(union)
        elif tagged := union.get("discriminator", {}).get("mapping", {}).get(part):  # no field: which kind it is
            node = resolve({"$ref": tagged})
    return list(node.get("properties", {}))


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    tags = {"qwen3-asr", "ctc"}
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in tags:
            text += f".{part}" if text else str(part)
    return text.removesuffix(".[key]")


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_of(value: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)
