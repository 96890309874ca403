"""From the command that starts the upstream fine-tuning script to the round that means the same, with what was wrong
in it corrected. Every correction stands as a comment in the file, beside what it is about."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caspi.errors import UserError
from caspi.files import write_text
from caspi.spec import load_cluster, load_round
from caspi.spec.models import is_repository
from caspi.starter.first import check_draft
from caspi.starter.listing import Listing, look_at
from caspi.starter.machine import Gpus, gpus_here
from caspi.starter.shell import Launch, read_launch
from caspi.starter.upstream import AUTHORS_RATE, DEFAULTS, MEANINGLESS, OTHERS, PINNED, SCRIPT, SHAPES

WIDTH = 118


KINDS = ("corrected: ", "assumed: ", "to do: ", "not carried over: ")
"""How remarks begin that people must hear of; others only explain a line of the file."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written, and what people should know about it."""

    files: list[Path]
    notes: list[str]
    """Those that begin with one of KINDS."""


@dataclass(slots=True)
class _Notes:
    """Remarks by the field that they stand above; "" is the head of the file."""

    by_place: dict[str, list[str]] = field(default_factory=dict)

    def say(self, place: str, text: str) -> None:
        self.by_place.setdefault(place, []).append(text)

    def lines(self, place: str, indent: int) -> list[str]:
        return [line for text in self.by_place.get(place, ()) for line in _comment(text, indent)]

    def all(self) -> list[str]:
        return [text for texts in self.by_place.values() for text in texts if text.startswith(KINDS)]


def write_from_sft(folder: Path, name: str, command: str, language: str | None, here: Path) -> Converted:
    """Write rounds/NAME.yaml and clusters/NAME.yaml from the command of the upstream script; it was given in `here`.

    UserError, and nothing written, when the command can't be understood as a whole.
    """
    round_file, cluster_file = folder / "rounds" / f"{name}.yaml", folder / "clusters" / f"{name}.yaml"
    for path in (round_file, cluster_file):
        if path.exists():
            raise UserError("is there already; choose another name, or edit it", where=str(path))
    for other, why in OTHERS.items():
        if re.search(rf"(?<![\w.-]){re.escape(other)}\b", command) and SCRIPT not in command:
            raise UserError(f"{other}: {why}", where="--from-sft")
    try:
        launch = read_launch(command, SCRIPT)
        notes = _Notes()
        options = _understood(launch, notes)
        there = here / launch.folder
        texts = {
            cluster_file: _cluster(name, launch, options, notes),
            round_file: _round(name, launch, options, language, there, round_file.parent, notes),
        }
    except UserError as error:
        raise UserError(*error.problems, where="--from-sft") from None
    for value in launch.secrets.values():  # no way in is known; a secret in a file would be worse than a refusal
        if len(value) >= 6 and any(value in text for text in texts.values()):
            raise UserError("a secret of the command stands in another option too; take it out", where="--from-sft")
    check_draft(texts[round_file], round_file, load_round)
    check_draft(texts[cluster_file], cluster_file, load_cluster)
    for path, text in texts.items():
        write_text(path, text)
    return Converted([round_file, cluster_file], notes.all())


def _understood(launch: Launch, notes: _Notes) -> Mapping[str, str]:
    """The script's options with its defaults. Values are never quoted in errors: one may be a secret."""
    known = {*DEFAULTS, *MEANINGLESS}
    if unknown := sorted(set(launch.options) - known):
        close = [match for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
        hint = f"; did you mean --{close[0]}?" if len(unknown) == 1 and close else ""
        raise UserError(f"{SCRIPT} has no {', '.join(f'--{name}' for name in unknown)}{hint}; take it out or mend it")
    if launch.stray:
        raise UserError(f"{launch.stray} words of the command belong to no option of {SCRIPT}; take them out")
    given = {name: value for name, value in launch.options.items() if name in DEFAULTS}
    for name, value in given.items():
        if value is None:
            raise UserError(f"--{name}: its value is missing")
        if "$" in value or "`" in value:
            raise UserError(f"--{name}: holds a shell variable; write its value instead")
    if dropped := [f"--{name} ({why})" for name, why in MEANINGLESS.items() if name in launch.options]:
        notes.say("", f"not carried over: {', '.join(dropped)}")
    if launch.unused:
        notes.say("", f"not carried over: {', '.join(f'--{name}' for name in launch.unused)} of the launcher")
    if launch.broken_lines:
        notes.say(
            "",
            f"corrected: after {_times(launch.broken_lines)} a backslash is followed by a comment or a blank. A shell "
            "ends the command there, so what follows was never passed; it is read here as it was meant",
        )
    if launch.variables:
        notes.say("", f"not carried over: {', '.join(launch.variables)} of the environment")
    for name in launch.secrets:
        notes.say(
            "", f"not carried over: {name}: its value is written nowhere; export it in the shell, it is read there"
        )
    return {**DEFAULTS, **{name: value for name, value in given.items() if value is not None}}


def _cluster(name: str, launch: Launch, options: Mapping[str, str], notes: _Notes) -> str:
    gpus = _gpus(launch, notes)
    lines = [f"# {name}: where the command ran. Changes nothing about the result.", f"nodes: {launch.nodes}"]
    if not gpus:
        lines.append(f"processes_per_node: {launch.processes or 1}")
    else:
        if gpus > 16:
            raise UserError(f"{gpus} GPUs a node: 16 are the most")
        gpu = gpus_here() or _assumed(notes)
        lines.append(f"gpus_per_node: {gpus}")
        lines.append(
            f"gpu: {{product: {_plain(gpu.product)}, memory: {gpu.mebibytes} MiB}}  # with price: 1.60 USD/h also costs"
        )
    workers = _number(options, "num_workers", 0, 64)
    return "\n".join([*lines, f"workers: {workers:.0f}", ""])


def _gpus(launch: Launch, notes: _Notes) -> int:
    """GPUs a node."""
    if launch.visible == 0:
        return 0
    if launch.distributed:
        if launch.processes is None and launch.visible is None:
            raise UserError("the launcher was left to count the GPUs; write --nproc_per_node=N")
        if launch.processes and launch.visible and launch.processes > launch.visible:
            raise UserError(
                f"--nproc_per_node={launch.processes}, but CUDA_VISIBLE_DEVICES shows {launch.visible}: it could not "
                "have run; make them equal"
            )
        return launch.processes or launch.visible or 1
    if launch.visible is None:
        notes.say("", "assumed: one GPU. Trainer takes all that it sees, and the command does not say how many")
    elif launch.visible > 1:
        notes.say(
            "",
            f"corrected: python with {launch.visible} visible GPUs is DataParallel, one process that drives them all; "
            "here every GPU has its own process",
        )
    return launch.visible or 1


def _assumed(notes: _Notes) -> Gpus:
    notes.say("", "assumed: GPUs of 80 GiB. The command does not say; write yours into the cluster file")
    return Gpus("NVIDIA-A100-SXM4-80GB", 80 * 1024)


def _round(
    name: str,
    launch: Launch,
    options: Mapping[str, str],
    language: str | None,
    there: Path,
    rounds: Path,
    notes: _Notes,
) -> str:
    """The round file. `there` is the folder that the script was started in."""
    if _number(options, "sr", 1, 1e6) != 16_000:
        raise UserError("--sr: Qwen3-ASR hears 16,000 samples a second; leave it out")
    train = _listed(options["train_file"], "train_file", there)
    processes = launch.nodes * ((launch.processes or launch.visible or 1) if launch.distributed else 1)
    devices = launch.nodes * max(1, launch.visible if launch.visible and not launch.distributed else processes)
    each, accumulated = _number(options, "batch_size", 1, 65536), _number(options, "grad_acc", 1, 65536)
    batch = int(each * accumulated * (processes if launch.distributed else devices))
    spoken = _language(train, language, notes)
    base = _base(options["model_path"], there, notes)
    epochs = _epochs(options, notes)
    steps = math.ceil(train.rows * 0.95 / batch) * epochs if train.rows else None
    shape, warmup = _schedule(options, steps, notes)
    rate = _rate(options, notes)
    every = _every(options, steps, epochs, notes)
    _say_general(each, accumulated, processes, notes)
    notes.say("data.keep", "the script trains on every row; what is dropped here is counted by reason")
    keep = max(1, int(_number(options, "save_total_limit", 1, 1000)) - 1)
    hebrew = spoken == "Hebrew"
    source = _place(train, options["train_file"], rounds, notes)
    test = _test(options, there, rounds, notes)
    context = f"\n  context: {json.dumps(train.prompt, ensure_ascii=False)}" if train.prompt else ""
    if train.prompts > 1:
        notes.say("model", f"not carried over: {train.prompts} different prompts: a round has one context for all rows")

    lines: list[tuple[int, str, str]] = [
        (0, "", f"round: {name}"),
        (0, "", "seed: 42"),
        (0, "", ""),
        (0, "model", "model:"),
        (2, "", "family: qwen3-asr"),
        (2, "model.base", f"base: {base}"),
        (2, "model.language", f"language: {_plain(spoken)}{context}"),
        (0, "", ""),
        (0, "", "data:"),
        (2, "data.sources", f"sources: [{{name: train, {source}}}]"),
        (2, "", f"text: {'hebrew-2' if hebrew else 'plain-1'}"),
        (2, "data.keep", "keep: {seconds: [0.5, 30]}"),
        (2, "data.split", "split: {by: [recording, speaker, text], eval: 5%}"),
        (0, "", ""),
        (0, "", "train:"),
        (2, "train.global_batch", f"global_batch: {batch}"),
        (2, "train.phases", f"phases: [{{name: full, epochs: {epochs}, rates: {{all: {rate}}}}}]"),
        (2, "train.schedule", f"schedule: {{shape: {shape}, warmup_steps: {warmup}}}"),
        (2, "train.optimizer", "optimizer: {weight_decay: 0.0, betas: [0.9, 0.999], clip: 1.0}"),
        (2, "train.precision", "precision: bf16"),
        (2, "train.evaluate", f"evaluate: {{every_steps: {every}, utterances: 2000}}"),
        (2, "train.keep", f"keep: {{every_steps: {every}, last: {keep}, best: 1}}"),
        (0, "", ""),
        (0, "", "benchmark:"),
        (2, "benchmark.sets", f"sets: [{test}]"),
        (2, "", f"profiles: [{'hebrew-fair, ivrit-leaderboard' if hebrew else 'plain'}]"),
    ]
    head = f"# {name}: what {SCRIPT} was started for, with what was wrong in it corrected where it stands."
    written = [head, *notes.lines("", 0)]
    for indent, place, line in lines:
        written += notes.lines(place, indent) if place else []
        written.append(" " * indent + line)
    return "\n".join(written) + "\n"


def _say_general(each: float, accumulated: float, processes: int, notes: _Notes) -> None:
    """What is wrong whatever the options."""
    factor = int(accumulated) * processes
    if factor > 1:
        notes.say(
            "train.optimizer",
            f"corrected: the script's loss and gradients are {factor} times too large (grad_acc {accumulated:.0f} x "
            f"{processes} processes): divide its logged loss by {factor}. Here a loss is that of a token. AdamW does "
            "not feel such a factor, so a rate means the same; but the clip at 1.0 cut every step there, and cuts "
            "only the rough ones here",
        )
    notes.say(
        "train.global_batch",
        f"the script's {each:.0f} x {accumulated:.0f} x GPUs; how it is split follows from the cluster and the memory",
    )
    if each > 1:
        notes.say(
            "train.global_batch",
            "corrected: labels. The processor pads on the left and the script masks the first columns, so each row "
            "but the longest was trained on part of its prompt. Here exactly the target and its end are labelled",
        )
    notes.say(
        "train.precision",
        "corrected: the script's weights are bf16 alone, and at a rate of 2e-5 only 30% of them move in a step. Here "
        "they are fp32 under a bf16 forward pass",
    )
    notes.say(
        "train.keep",
        "corrected: checkpoints of a base from the hub lack preprocessor_config.json and the chat template, and do "
        "not load. Here each one is whole",
    )
    notes.say(
        "train.evaluate",
        "corrected: the script knows a loss, of 8 rows a batch whatever batch_size says, and keeps the newest "
        "checkpoints. Here the WER on dev chooses the model",
    )


def _listed(value: str, option: str, there: Path) -> Listing:
    if re.search(r"[*?\[\]]|://", value):
        raise UserError(f"--{option}: give one local file")
    if Path(value).suffix != ".jsonl":
        raise UserError(f"--{option}: Caspi reads JSON lines from files called *.jsonl; rename it")
    return look_at(there / value, there)


def _language(train: Listing, asked: str | None, notes: _Notes) -> str:
    found = sorted(train.languages)
    if len(found) > 1:
        raise UserError(f"--train_file: has {', '.join(found)}; a round has one language: make a file for each")
    if asked and found and asked != found[0]:
        raise UserError(f"--language {asked}: the training file says {found[0]}")
    if asked or found:
        return asked or found[0]
    why = f"the rows of {train.path.name} do not say" if train.rows else f"{train.path.name} is not here to look at"
    notes.say("model.language", f"assumed: Hebrew, since {why}; --language says another")
    return "Hebrew"


def _base(value: str, there: Path, notes: _Notes) -> str:
    """`base` and `revision` of the model."""
    if "://" in value or not value.strip():
        raise UserError("--model_path: give a repository as owner/name, or a folder")
    if (there / value).is_dir() or not is_repository(value):
        path = Path(os.path.relpath(there / value)) if not Path(value).is_absolute() else Path(value)
        return _plain(str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}")
    if value in PINNED:
        return f"{_plain(value)}\n  revision: {PINNED[value]}"
    notes.say("model.base", "to do: `main` moves: `caspi doctor` blocks until a commit of the repository stands here")
    return f"{_plain(value)}\n  revision: main"


def _epochs(options: Mapping[str, str], notes: _Notes) -> int:
    epochs = _number(options, "epochs", 0.001, 1000)
    if epochs != int(epochs):
        notes.say("train.phases", f"corrected: {epochs:g} epochs are no whole number: {math.ceil(epochs)}")
    return math.ceil(epochs)


def _schedule(options: Mapping[str, str], steps: int | None, notes: _Notes) -> tuple[str, int]:
    shape = SHAPES.get(options["lr_scheduler_type"])
    if shape is None:
        raise UserError(f"--lr_scheduler_type: there is no such shape here; it is one of {', '.join(SHAPES)}")
    ratio = _number(options, "warmup_ratio", 0, 1)
    if options["lr_scheduler_type"] == "constant":
        return shape, 0
    if steps is None:
        notes.say(
            "train.schedule",
            f"to do: the script warms up for {ratio:.1%} of the steps; `caspi plan` says how many those are after the "
            "export. 50 until then",
        )
        return shape, 50
    notes.say("train.schedule", f"{ratio:.1%} of about {steps:,} steps")
    return shape, round(ratio * steps)


def _rate(options: Mapping[str, str], notes: _Notes) -> str:
    rate = _number(options, "lr", 1e-9, 0.999)
    if rate <= 2 * AUTHORS_RATE:
        return f"{rate:.1e}"
    notes.say(
        "train.phases",
        f"corrected: {rate:g} is {rate / AUTHORS_RATE:.3g} times the rate of the authors of the model for all weights, "
        f"{AUTHORS_RATE:g}; theirs is taken. Write {rate:.1e} back if you mean it",
    )
    return f"{AUTHORS_RATE:.1e}"


def _every(options: Mapping[str, str], steps: int | None, epochs: int, notes: _Notes) -> int:
    """Steps between two checkpoints, which are also scored."""
    strategy = options["save_strategy"]
    if strategy == "steps":
        return int(_number(options, "save_steps", 1, 10**7))
    if strategy == "epoch" and steps:
        return max(1, steps // epochs)
    if strategy not in ("epoch", "no"):
        raise UserError("--save_strategy: it is one of steps, epoch, no")
    notes.say("train.keep", f"assumed: 500 steps for save_strategy {strategy}")
    return 500


def _test(options: Mapping[str, str], there: Path, rounds: Path, notes: _Notes) -> str:
    """The test set as YAML: the eval_file."""
    value = options["eval_file"]
    if not value:
        notes.say(
            "benchmark.sets",
            'corrected: without eval_file the script ends in an error at once (eval_strategy="steps"). to do: a round '
            "is judged on a test set; put yours here",
        )
        return "{name: test, path: ../data/test}"
    if (there / value).resolve() == (there / options["train_file"]).resolve():
        raise UserError("--eval_file: it is the training file; a model can't be judged on what it was trained on")
    notes.say(
        "benchmark.sets",
        "corrected: the script looks at eval_file while it trains. Here it is never trained on and chooses nothing: it "
        "is the test set. Dev, which chooses the checkpoint, is 5% of train_file",
    )
    listing = _listed(value, "eval_file", there)
    name = re.sub(r"[^a-z0-9]+", "-", listing.path.stem.lower()).strip("-")[:40].strip("-")
    name = name if name and name != "train" else "eval"
    return f"{{name: {name}, {_place(listing, value, rounds, notes)}}}"


def _place(listing: Listing, given: str, rounds: Path, notes: _Notes) -> str:
    """`path` and `files` of a list whose audio may lie elsewhere; relative to the round file unless given whole."""
    if listing.misplaced:
        notes.say(
            "data.sources",
            f"to do: the audio paths of {listing.path.name} are relative to the folder that the script was started "
            "in; Caspi reads them from where the list lies: move the list there, or write whole paths",
        )

    def written(path: Path) -> str:
        return _plain(str(path) if Path(given).is_absolute() else os.path.relpath(path, Path.cwd() / rounds))

    if listing.root == listing.path.parent:
        return f"path: {written(listing.path)}"
    return f"path: {written(listing.root)}, files: {_plain(listing.path.relative_to(listing.root).as_posix())}"


def _number(options: Mapping[str, str], name: str, least: float, most: float) -> float:
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise UserError(f"--{name}: a number from {least:g} to {most:g} is needed")
    return value


def _plain(text: str) -> str:
    """Text as YAML: as it is where that is safe, in quotes elsewhere."""
    safe = re.fullmatch(r"[A-Za-z./][\w./-]*", text) and text.lower() not in (
        "true",
        "false",
        "null",
        "yes",
        "no",
        "on",
        "off",
    )
    return text if safe else json.dumps(text, ensure_ascii=False)


def _comment(text: str, indent: int) -> Sequence[str]:
    lead = " " * indent + "# "
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False
    )


def _times(count: int) -> str:
    return "one line" if count == 1 else f"{count} lines"
