"""In a build: prints the software bill of materials of the image (CycloneDX 1.5, JSON): its Debian and Python packages.

sbom.py NAME
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def python_packages() -> list[dict[str, Any]]:
    found = {}
    for package in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        found[name] = _component(name, package.version, f"pkg:pypi/{name}@{package.version}", _license(package))
    return [found[name] for name in sorted(found)]


def debian_packages() -> list[dict[str, Any]]:
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    system = re.search(r'^ID="?([a-z]+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    vendor = system.group(1) if system else "debian"
    return [
        _component(name, version, f"pkg:deb/{vendor}/{name}@{version}?arch={machine}", None)
        for name, version, machine in sorted(line.split() for line in listed.splitlines())
    ]


def _component(name: str, version: str, url: str, license_id: str | None) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url}
    if license_id:
        made["licenses"] = [{"expression": license_id}]
    return made


def _license(package: metadata.Distribution) -> str | None:
    """Only what a package declares as an SPDX expression; free text would be a guess."""
    return package.metadata.get("License-Expression")


def document(name: str, components: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "bom-ref": name}},
        "components": components,
    }


if __name__ == "__main__":
    json.dump(document(sys.argv[1], debian_packages() + python_packages()), sys.stdout, indent=1)
