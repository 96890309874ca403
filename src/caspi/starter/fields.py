"""What an option of the upstream script becomes in the round, field by field, and what is said about it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from caspi.errors import UserError
from caspi.spec.models import is_repository
from caspi.starter.listing import Listing, look_at
from caspi.starter.notes import Notes, plain
from caspi.starter.upstream import AUTHORS_RATE, PINNED, SHAPES


def listed(value: str, option: str, there: Path) -> Listing:
    if re.search(r"[*?\[\]]|://", value):
        raise UserError(f"--{option}: give one local file")
    if Path(value).suffix != ".jsonl":
        raise UserError(f"--{option}: Caspi reads JSON lines from files called *.jsonl; rename it")
    return look_at(there / value, there)


def language(train: Listing, asked: str | None, notes: Notes) -> str:
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


def base(value: str, there: Path, notes: Notes) -> str:
    """`base` and `revision` of the model."""
    if "://" in value or not value.strip():
        raise UserError("--model_path: give a repository as owner/name, or a folder")
    if (there / value).is_dir() or not is_repository(value):
        path = Path(os.path.relpath(there / value)) if not Path(value).is_absolute() else Path(value)
        return plain(str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}")
    if value in PINNED:
        return f"{plain(value)}\n  revision: {PINNED[value]}"
    notes.say("model.base", "to do: `main` moves: `caspi doctor` blocks until a commit of the repository stands here")
    return f"{plain(value)}\n  revision: main"


def epochs(options: Mapping[str, str], notes: Notes) -> int:
    epochs = number(options, "epochs", 0.001, 1000)
    if epochs != int(epochs):
        notes.say("train.phases", f"corrected: {epochs:g} epochs are no whole number: {math.ceil(epochs)}")
    return math.ceil(epochs)


def schedule(options: Mapping[str, str], steps: int | None, notes: Notes) -> tuple[str, int]:
    shape = SHAPES.get(options["lr_scheduler_type"])
    if shape is None:
        raise UserError(f"--lr_scheduler_type: there is no such shape here; it is one of {', '.join(SHAPES)}")
    ratio = number(options, "warmup_ratio", 0, 1)
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


def rate(options: Mapping[str, str], notes: Notes) -> str:
    rate = number(options, "lr", 1e-9, 0.999)
    if rate <= 2 * AUTHORS_RATE:
        return f"{rate:.1e}"
    notes.say(
        "train.phases",
        f"corrected: {rate:g} is {rate / AUTHORS_RATE:.3g} times the rate of the authors of the model for all weights, "
        f"{AUTHORS_RATE:g}; theirs is taken. Write {rate:.1e} back if you mean it",
    )
    return f"{AUTHORS_RATE:.1e}"


def every(options: Mapping[str, str], steps: int | None, epochs: int, notes: Notes) -> int:
    """Steps between two checkpoints, which are also scored."""
    strategy = options["save_strategy"]
    if strategy == "steps":
        return int(number(options, "save_steps", 1, 10**7))
    if strategy == "epoch" and steps:
        return max(1, steps // epochs)
    if strategy not in ("epoch", "no"):
        raise UserError("--save_strategy: it is one of steps, epoch, no")
    notes.say("train.keep", f"assumed: 500 steps for save_strategy {strategy}")
    return 500


def test(options: Mapping[str, str], there: Path, rounds: Path, notes: Notes) -> str:
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
    listing = listed(value, "eval_file", there)
    name = re.sub(r"[^a-z0-9]+", "-", listing.path.stem.lower()).strip("-")[:40].strip("-")
    name = name if name and name != "train" else "eval"
    return f"{{name: {name}, {place(listing, value, rounds, notes)}}}"


def place(listing: Listing, given: str, rounds: Path, notes: Notes) -> str:
    """`path` and `files` of a list whose audio may lie elsewhere; relative to the round file unless given whole."""
    if listing.misplaced:
        notes.say(
            "data.sources",
            f"to do: the audio paths of {listing.path.name} are relative to the folder that the script was started "
            "in; Caspi reads them from where the list lies: move the list there, or write whole paths",
        )

    def written(path: Path) -> str:
        return plain(str(path) if Path(given).is_absolute() else os.path.relpath(path, Path.cwd() / rounds))

    if listing.root == listing.path.parent:
        return f"path: {written(listing.path)}"
    return f"path: {written(listing.root)}, files: {plain(listing.path.relative_to(listing.root).as_posix())}"


def number(options: Mapping[str, str], name: str, least: float, most: float) -> float:
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise UserError(f"--{name}: a number from {least:g} to {most:g} is needed")
    return value
