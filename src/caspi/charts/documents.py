"""What is made from the values of a chart: values.schema.json, values.yaml and the table of its README."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from caspi.charts.values import Values

Schema = dict[str, Any]
VALUES_HEADING = "\n## Values\n"
MISSING = object()


def schema_file(kind: type[Values], title: str) -> str:
    """The text of values.schema.json: strict, so that Helm refuses what the chart doesn't know."""
    found = resolved(kind)
    found["properties"]["global"] = {"type": ["object", "null"], "description": "Helm's own; not used here."}
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return json.dumps(described | found, indent=1, ensure_ascii=False) + "\n"


def values_file(kind: type[Values], title: str) -> str:
    """The text of values.yaml: every value with its default, and what it means above it."""
    made = "Made from src/caspi/charts by `make generate`. What says (required) has no default."
    lines = [f"# {title}", f"# {made}", *_yaml(resolved(kind), {})]
    return "\n".join(lines) + "\n"


def readme(text: str, kind: type[Values]) -> str:
    """A chart's README: what people wrote above `## Values`, and below it the table."""
    written, heading, _ = text.partition(VALUES_HEADING)
    assert heading, "a chart's README has a heading `## Values`"
    table = ["| value | what it may be | default | meaning |", "|---|---|---|---|", *_rows(resolved(kind), {}, "")]
    return "\n".join([written + VALUES_HEADING, *table]) + "\n"


def resolved(kind: type[Values]) -> Schema:
    """The JSON Schema of values with nothing left to look up, so that Helm's errors name one place and one reason."""
    made = kind.model_json_schema(by_alias=True)
    return _resolve(made, made.get("$defs", {}))


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = {name: value for name, value in node.items() if name not in ("title", "$defs")}
    if "$ref" in node:
        target = definitions[node.pop("$ref").removeprefix("#/$defs/")]
        return _resolve(target | node, definitions)
    if "anyOf" in node:
        return _resolve(_or_null(node, definitions), definitions)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "patternProperties" in node:
        node["additionalProperties"] = False
    for many in ("properties", "patternProperties"):
        if many in node:
            node[many] = {name: _resolve(child, definitions) for name, child in node[many].items()}
    for one in ("items", "additionalProperties"):
        if isinstance(node.get(one), dict):
            node[one] = _resolve(node[one], definitions)
    if node.get("default", MISSING) is None:
        del node["default"]
    return node


def _or_null(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`X | None` as one schema of two types: of an anyOf, Helm prints an error for each side."""
    choices = node.pop("anyOf")
    assert len(choices) == 2 and choices[1] == {"type": "null"}, "of unions, values know `X | None` only"
    choice = _resolve(choices[0], definitions)
    if "enum" in choice:
        choice["enum"] = [*choice["enum"], None]
    return choice | {"type": [choice["type"], "null"]} | node


def _fields(schema: Schema, defaults: Any) -> Iterator[tuple[str, Schema, Any]]:
    """Name, schema and default (MISSING when required) of each property; the default of a parent wins."""
    for name, child in schema["properties"].items():
        own = child.get("default", MISSING if name in schema.get("required", []) else None)
        yield name, child, defaults.get(name, own) if isinstance(defaults, dict) else own


def _yaml(schema: Schema, defaults: Any, indent: str = "") -> Iterator[str]:
    for name, child, default in _fields(schema, defaults):
        if not indent:
            yield ""
        yield from _comment(child, default, indent)
        if default is MISSING and not _has_defaults(child):
            yield f"{indent}# {name}:"
        elif "properties" in child and default is not None:
            yield f"{indent}{name}:"
            yield from _yaml(child, default, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(default, ensure_ascii=False)}"


def _has_defaults(schema: Schema) -> bool:
    """Helm takes defaults from values.yaml only: a mapping that must be given stands there with those of its fields."""
    return any(default is not MISSING for _, _, default in _fields(schema, {})) if "properties" in schema else False


def _comment(child: Schema, default: Any, indent: str) -> Iterator[str]:
    text = " ".join(child.get("description", "").split())
    if default is MISSING:
        text = f"(required) {text}"
    for line in textwrap.wrap(text, 116 - len(indent), break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"
    inner = child.get("items", child)
    if "properties" in inner and not default:
        shape = ", ".join(f"{name}: {_sample(value)}" for name, _, value in _fields(inner, {}))
        yield f"{indent}# {'Each: ' if 'items' in child else ''}{{{shape}}}"


def _sample(default: Any) -> str:
    if default is MISSING:
        return "(required)"
    return "{...}" if isinstance(default, dict) and default else json.dumps(default, ensure_ascii=False)


def _rows(schema: Schema, defaults: Any, above: str) -> Iterator[str]:
    for name, child, default in _fields(schema, defaults):
        where = f"{above}{name}"
        inner = child.get("items", child)
        shown = "required" if default is MISSING else f"`{json.dumps(default, ensure_ascii=False)}`"
        if "properties" in child and default is not MISSING and default is not None:
            shown = ""
        meaning = " ".join(child.get("description", "").split()).replace("|", "\\|")
        yield f"| `{where}` | {_allowed(child)} | {shown} | {meaning} |"
        if "properties" in inner:
            yield from _rows(inner, default, f"{where}[]." if "items" in child else f"{where}.")


def _allowed(child: Schema) -> str:
    if "enum" in child:
        return ", ".join(f"`{json.dumps(choice).strip(chr(34))}`" for choice in child["enum"])
    kinds = child["type"] if isinstance(child["type"], list) else [child["type"]]
    if kinds[0] == "array":
        words = f"list of {_allowed(child['items'])}"
    elif kinds[0] in ("integer", "number"):
        low, high = child.get("minimum"), child.get("maximum")
        words = {"integer": "whole number", "number": "number"}[kinds[0]]
        words += f", {low} to {high}" if high is not None else f", {low} or more" if low is not None else ""
    else:
        words = {"string": "text", "boolean": "true or false", "object": "mapping"}[kinds[0]]
    return words + (" or null" if "null" in kinds[1:] else "")
