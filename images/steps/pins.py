"""In a build: what goes into an image, from pyproject.toml and a file of pins.

pins.py torch PINS                     prints the pins of torch and CUDA: a layer of their own
pins.py only PINS NAME...              prints the pins of these packages and of nothing that they ask for
pins.py requirements PYPROJECT EXTRA.. prints what Caspi asks for, with these extras
pins.py check PINS [EXCEPT...]         every installed package is pinned, and of the version of its pin
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")


def torch_pins(pins: str) -> str:
    """Of a file of pins, the entries of torch and CUDA with their hashes."""
    return "".join(entry for entry in _entries(pins) if TORCH.match(entry))


def only(pins: str, names: list[str]) -> str:
    """The entries of these packages with their hashes; one that is not pinned ends the build."""
    entries = {entry.partition("==")[0]: entry for entry in _entries(pins)}
    if missing := sorted(set(names) - entries.keys()):
        sys.exit(f"not pinned: {', '.join(missing)}")
    return "".join(entries[name] for name in names)


def requirements(pyproject: str, extras: list[str]) -> str:
    """What Caspi asks for, with these extras; one a line."""
    project = tomllib.loads(pyproject)["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return "\n".join(wanted) + "\n"


def unpinned(pins: str, installed: dict[str, str], exceptions: list[str]) -> list[str]:
    """What is installed without a pin, or in another version."""
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==(\S+)", pins, re.MULTILINE))
    return [
        f"{name}=={version}, pinned: {pinned.get(name, 'no')}"
        for name, version in sorted(installed.items())
        if name not in exceptions and pinned.get(name) != version
    ]


def _entries(pins: str) -> list[str]:
    """Of a file of pins, each with its hashes."""
    return re.split(r"(?<=\n)(?=\S)", pins)


def main(command: str, file: str, *rest: str) -> None:
    text = Path(file).read_text()
    if command == "torch":
        sys.stdout.write(torch_pins(text))
    elif command == "only":
        sys.stdout.write(only(text, list(rest)))
    elif command == "requirements":
        sys.stdout.write(requirements(text, list(rest)))
    elif command == "check":
        installed = {re.sub(r"[-_.]+", "-", found.name).lower(): found.version for found in metadata.distributions()}
        if wrong := unpinned(text, installed, list(rest)):
            sys.exit("not as pinned: " + "; ".join(wrong))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
