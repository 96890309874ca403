"""What a pasted shell command starts: a script, its options, on how many processes. Nothing is run or expanded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from caspi.errors import UserError

SECRET = re.compile(r"(?i)(?:^|_)(?:token|key|apikey|secret|pass|passwd|password|credentials?)(?:_|$)")
"""Names of variables whose values are never shown nor written."""

_ELSEWHERE = {"srun", "sbatch", "mpirun", "mpiexec", "horovodrun", "ssh", "docker", "podman", "kubectl", "ray"}

_PIECE = re.compile(
    r"""
    (?P<joined>\\\n)                                        # a line goes on
  | (?P<broken>\\[ \t]+(?:\#[^\n]*)?(?:\n|$))               # meant to go on: blanks or a comment after the backslash
  | (?P<space>[ \t]+)
  | (?P<comment>(?<![^\s;&|])\#[^\n]*)
  | (?P<redirect>(?:\d|&)?(?:>>|>\||>&|<&|<<<|>|<)[ \t]*(?:'[^']*'|"[^"]*"|[^\s;&|]+))
  | (?P<end>&&|\|\||[;&|\n])
  | (?P<word>(?:[^\s'"\\;&|<>]|\\[^\n]|'[^']*'|"(?:\\.|[^"\\])*")+)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One script as a command line starts it."""

    script: str
    """Its file name."""
    options: Mapping[str, str | None]
    """`--name value` by name, without dashes; None for an option without a value. The last one counts."""
    stray: int
    """Words that belong to no option."""
    folder: str
    """Where `cd` went before, as it stands there."""
    nodes: int
    processes: int | None
    """On each node; None when the launcher was left to count the GPUs."""
    distributed: bool
    """Whether a launcher starts one process a GPU. Without one, Trainer drives all visible GPUs from one process."""
    visible: int | None
    """GPUs that CUDA_VISIBLE_DEVICES shows; None when it is not set."""
    unused: Sequence[str]
    """Launcher options that mean nothing here, by name."""
    secrets: Mapping[str, str]
    """Variables whose name says that the value is secret."""
    variables: Sequence[str]
    """The other variables of its environment, by name."""
    broken_lines: int
    """Lines that a comment or a blank after the backslash ends in a real shell."""


def read_launch(text: str, script: str) -> Launch:
    """The command in `text` that starts a file called `script`. UserError when there is none, or more than one."""
    commands, broken = _commands(text.replace("\r\n", "\n"))
    variables: dict[str, str] = {}
    exported: set[str] = set()
    folder, found = "", []
    for words in commands:
        words = [_substituted(word, variables) for word in words]
        assigned, rest = _assignments(words)
        if not rest:
            variables |= assigned
        elif rest[0] == "export":
            given, names = _assignments(rest[1:])
            variables |= given
            exported |= given.keys() | set(names)
        elif rest[0] == "cd" and len(rest) == 2:
            folder = str(PurePosixPath(folder) / rest[1])
        elif any(PurePosixPath(word).name == script for word in rest):
            own = exported | assigned.keys()
            found.append((rest, folder, {k: v for k, v in (variables | assigned).items() if k in own}))
    if not found:
        scripts = sorted({PurePosixPath(w).name for words in commands for w in words if w.endswith((".py", ".sh"))})
        named = f"; it has {', '.join(scripts)}" if scripts else ""
        raise UserError(f"no command there starts {script}{named}")
    if len(found) > 1:
        raise UserError(f"{script} is started {len(found)} times there; give one command, one round comes from it")
    return _launch(*found[0], script, broken)


def _launch(words: Sequence[str], folder: str, variables: Mapping[str, str], script: str, broken: int) -> Launch:
    at = next(index for index, word in enumerate(words) if PurePosixPath(word).name == script)
    before = words[:at]
    if elsewhere := _ELSEWHERE & {PurePosixPath(word).name for word in before}:
        raise UserError(
            f"{', '.join(sorted(elsewhere))} is not understood; give the python or torchrun command that it starts"
        )
    launcher, _ = _options(before)
    launcher = {name.replace("-", "_"): value for name, value in launcher.items()}
    options, stray = _options(words[at + 1 :])
    programs = {PurePosixPath(word).name for word in before}
    distributed = bool(
        programs & {"torchrun", "accelerate", "deepspeed", "torch.distributed.run", "torch.distributed.launch"}
    )
    nodes = _nodes(launcher.pop("nnodes", None) or launcher.pop("num_machines", None))
    each = launcher.pop("nproc_per_node", None) or launcher.pop("num_gpus", None)
    total = launcher.pop("num_processes", None)
    processes: int | None = 1
    if each in ("gpu", "auto") or (distributed and each is None and programs & {"accelerate", "deepspeed"}):
        processes = None
    elif each is not None:
        processes = _whole("--nproc_per_node", each)
    if total is not None:
        processes = max(1, _whole("--num_processes", total) // nodes)
    return Launch(
        script=script,
        options=options,
        stray=stray,
        folder=folder,
        nodes=nodes,
        processes=processes,
        distributed=distributed,
        visible=_visible(variables.get("CUDA_VISIBLE_DEVICES")),
        unused=sorted(name for name in launcher if name not in ("m", "u")),
        secrets={name: value for name, value in variables.items() if SECRET.search(name) and value},
        variables=sorted(name for name in variables if not SECRET.search(name) and name != "CUDA_VISIBLE_DEVICES"),
        broken_lines=broken,
    )


def _commands(text: str) -> tuple[list[list[str]], int]:
    """The commands as unquoted words, and how many lines a shell would have ended where they were meant to go on."""
    commands: list[list[str]] = [[]]
    at = broken = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise UserError(f"not a shell command: a quote is open from character {at + 1} on")
        if piece["end"]:
            commands.append([])
        elif piece["word"]:
            commands[-1].append(_unquoted(piece["word"]))
        broken += piece.lastgroup == "broken"
        at = piece.end()
    return [words for words in commands if words], broken


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word))
    except ValueError:
        raise UserError("not a shell command: a quote is open") from None


def _substituted(word: str, variables: Mapping[str, str]) -> str:
    """Variables that the same text sets; secret ones stay where they are."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return match[0] if SECRET.search(name) else variables.get(name, match[0])

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, word)


def _assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Leading NAME=value words (also behind `env` and `nohup`), and the words after them."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            found[match[1]] = match[2]
        elif word not in ("env", "nohup", "time", "exec", "sudo"):
            return found, list(words[index:])
    return found, []


def _options(words: Sequence[str]) -> tuple[dict[str, str | None], int]:
    """`--name value`, `--name=value` and `--name`; and how many words belong to none."""
    found: dict[str, str | None] = {}
    waiting: str | None = None
    stray = 0
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, mark, value = word.lstrip("-").partition("=")
            found[name] = value if mark else None
            waiting = None if mark else name
        elif waiting is not None:
            found[waiting], waiting = word, None
        else:
            stray += 1
    return found, stray


def _nodes(value: str | None) -> int:
    """`2`, or `1:4` of an elastic launch: the most."""
    return _whole("--nnodes", value.rpartition(":")[2]) if value else 1


def _whole(option: str, value: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", value):
        raise UserError(f"{option}: write its value as a whole number above 0")
    return int(value)


def _visible(value: str | None) -> int | None:
    if value is None or "$" in value:
        return None
    shown = [part for part in value.split(",") if part.strip()]
    return 0 if shown[:1] == ["-1"] else len(shown)
