"""JSON Schemas of what an API server serves, custom resources too, as kubeconform reads them: strict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
LOCATION = "{{ .ResourceKind }}-{{ .ResourceAPIVersion }}.json"
"""For kubeconform's -schema-location, after a folder."""
DEEPEST = 40
"""Schemas of custom resource definitions contain themselves; nothing else is so deep."""


def write_schemas(openapi: Mapping[str, Any], kinds: set[tuple[str, str]], folder: Path) -> None:
    """One file for each (apiVersion, kind), from the document that the server has at /openapi/v2."""
    definitions = openapi["definitions"]
    missing = set(kinds)
    for definition in definitions.values():
        for found in definition.get("x-kubernetes-group-version-kind", []):
            version = f"{found['group']}/{found['version']}".lstrip("/")
            if (version, found["kind"]) in missing:
                missing.discard((version, found["kind"]))
                path = folder / f"{found['kind'].lower()}-{found['version']}.json"
                path.write_text(json.dumps(_strict(definition, definitions, DEEPEST)))
    assert not missing, f"the cluster serves none of {sorted(missing)}"


def _strict(node: Schema, definitions: Mapping[str, Schema], depth: int) -> Schema:
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/definitions/")
        if name.endswith(("IntOrString", "Quantity")):
            return {"type": ["string", "integer", "number"]}
        node = definitions[name]
    if not depth or node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
        return {}
    made = {name: node[name] for name in ("type", "enum", "required", "pattern", "minimum", "maximum") if name in node}
    if "properties" in node:
        fields = {name: _strict(child, definitions, depth - 1) for name, child in node["properties"].items()}
        made["properties"] = fields
        made["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(node["additionalProperties"], definitions, depth - 1)
    if "items" in node:
        made["items"] = _strict(node["items"], definitions, depth - 1)
    return made
