"""What the pages promise: commands, links and paths, held against the command line, the Makefile and the folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

import caspi.cli  # noqa: F401  registers the commands
from caspi.cli.options import app

HOUSE = Path(__file__).parents[1]
PAGES = [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted(HOUSE.glob("docs/*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ENDS, REDIRECTIONS = {"&&", "||", "|", ";", "&", "(", ")"}, {">", ">>", "<", "<<", ">&"}
FOLDERS = "rounds|clusters|charts|manifests|docs|images|pipelines|demo|benchmarks|tests|src/caspi"
FOLDER_PATH = re.compile(rf"(?<![\w./@-])((?:{FOLDERS})/[\w.*/-]*[\w*])(?![\w<{{(@$])")
PLACEHOLDER = re.compile(r"(^|/)(x|y|mine|name|NAME|my-\w+)\b|\.\.\.|(^|/)[\w*-]+\.lock\.yaml$")
"""Names that a reader puts their own in place of; locks are merged by those who use them."""


@dataclass(frozen=True, slots=True)
class Command:
    """`argv` as a shell would take it apart; `whole` in a block, a mention in a sentence may leave things out."""

    line: str
    argv: tuple[str, ...]
    whole: bool


def blocks(text: str) -> Iterator[str]:
    """The code blocks of a page, fenced and indented."""
    yield from (match[3] for match in FENCE.finditer(text))
    outside = FENCE.sub("", text)
    yield "\n".join(line.strip() for line in outside.splitlines() if re.match(r" {4}\S", line))


def prose(text: str) -> str:
    return FENCE.sub("", text)


def commands(text: str) -> Iterator[Command]:
    """Everything that a page has people run, of Caspi and of make."""
    for block in blocks(text):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            yield from _in_line(line, whole=True)
    for match in SPAN.finditer(prose(text)):
        if re.match(r"(caspi|make) ", match[1]):
            yield from _in_line(match[1], whole=False)


def _in_line(line: str, whole: bool) -> Iterator[Command]:
    """A wide gap and words are a column that explains: what stands before it is a mention."""
    if not re.search(r"\b(caspi|make) ", line):
        return
    text, *column = re.split(r" {4,}(?![ #]|$)", line.strip().removeprefix("$ "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    part: list[str] = []
    redirected = False
    for token in [*_tokens(lexer), ";"]:
        if token not in ENDS:
            redirected |= token in REDIRECTIONS
            part += [] if redirected else [token]
            continue
        while part and re.match(r"\w+=", part[0]):
            del part[0]
        if len(part) > 1 and part[0] in ("caspi", "make"):
            yield Command(line.strip(), tuple(part), whole and not column)
        part, redirected = [], False


def _tokens(lexer: shlex.shlex) -> Iterator[str]:
    """Up to a quotation that ends in another line, as that of a script does."""
    try:
        yield from lexer
    except ValueError:
        return


@cache
def command_line() -> Any:
    return get_command(app)


@cache
def make_targets() -> frozenset[str]:
    text = (HOUSE / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z][\w -]*):(?!=)", text, re.MULTILINE)
    return frozenset(name for rule in rules for name in rule.split())


@cache
def make_variables() -> str:
    """The Makefile and the scripts that it calls: they read what is set on its command line."""
    scripts = [HOUSE / "Makefile", HOUSE / "images/build", *(HOUSE / "tests/cluster").glob("*")]
    return "\n".join(path.read_text(encoding="utf-8") for path in scripts if path.is_file())


def problem(command: Command) -> str | None:
    """What the program would say to it, or that there is no such thing; None when it can be run."""
    said = _make_problem(command) if command.argv[0] == "make" else _caspi_problem(command)
    return f"`{command.line}`: {said}" if said else None


def _make_problem(command: Command) -> str | None:
    for word in command.argv[1:]:
        name, is_variable, _ = word.partition("=")
        if is_variable and not re.search(rf"\b{name}\b", make_variables()):
            return f"nothing reads {name}"
        if not is_variable and word not in make_targets():
            return f"no target {word}"
    return None


def _caspi_problem(command: Command) -> str | None:
    name, arguments = command.argv[1], list(command.argv[2:])
    if name in ("--help", "--version"):
        return None
    found = command_line().commands.get(name)
    if found is None:
        return f"no command {name}"
    options = {option for parameter in found.params for option in parameter.opts} | {"-h", "--help"}
    if unknown := [word for word in arguments if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]:
        return f"caspi {name} has no {', '.join(unknown)}"
    if not command.whole:
        return None
    try:
        found.make_context(name, arguments)
    except typer.TyperException as error:
        return str(error.format_message())
    return None


def dead_links(page: Path, text: str) -> list[str]:
    """Links to files and headings that are not there."""
    found = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(text if path == page else path.read_text(encoding="utf-8")):
            found.append(f"{target}: no such heading")
    return found


def anchors(text: str) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, dashes for spaces."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def lost_paths(text: str) -> list[str]:
    """Files of this house that are named, and are not there."""
    named = {path for piece in [*SPAN.findall(prose(text)), *blocks(text)] for path in FOLDER_PATH.findall(piece)}
    named |= set(re.findall(r"(?<![\w./])(docs/[\w-]+\.md)\b", text))
    made = set(re.findall(r"caspi init ([\w-]+)", text))  # writes rounds/NAME.yaml and clusters/NAME.yaml
    return sorted(
        path
        for path in named
        if not PLACEHOLDER.search(path) and Path(path).stem not in made and not any(HOUSE.glob(path.rstrip("/")))
    )


def linked_pages() -> set[Path]:
    """Pages that some other page links to."""
    found = set()
    for page in [*PAGES, *HOUSE.glob("*/*/README.md")]:
        for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path != page:
                found.add(path)
    return found
