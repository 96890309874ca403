"""From the command that starts the upstream fine-tuning script to the round that means the same, with what was wrong
in it corrected. Every correction stands as a comment in the file, beside what it is about."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caspi.errors import UserError
from caspi.files import write_text
from caspi.spec import load_cluster, load_round
from caspi.starter import fields
from caspi.starter.first import check_draft
from caspi.starter.machine import Gpus, gpus_here
from caspi.starter.notes import Notes, plain
from caspi.starter.shell import Launch, read_launch
from caspi.starter.upstream import DEFAULTS, MEANINGLESS, OTHERS, SCRIPT


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written, and what people should know about it."""

    files: list[Path]
    notes: list[str]
    """Those that begin with one of KINDS."""


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
        notes = Notes()
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


def _understood(launch: Launch, notes: Notes) -> Mapping[str, str]:
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


def _cluster(name: str, launch: Launch, options: Mapping[str, str], notes: Notes) -> str:
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
            f"gpu: {{product: {plain(gpu.product)}, memory: {gpu.mebibytes} MiB}}  # with price: 1.60 USD/h also costs"
        )
    workers = fields.number(options, "num_workers", 0, 64)
    return "\n".join([*lines, f"workers: {workers:.0f}", ""])


def _gpus(launch: Launch, notes: Notes) -> int:
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


def _assumed(notes: Notes) -> Gpus:
    notes.say("", "assumed: GPUs of 80 GiB. The command does not say; write yours into the cluster file")
    return Gpus("NVIDIA-A100-SXM4-80GB", 80 * 1024)


def _round(
    name: str,
    launch: Launch,
    options: Mapping[str, str],
    language: str | None,
    there: Path,
    rounds: Path,
    notes: Notes,
) -> str:
    """The round file. `there` is the folder that the script was started in."""
    if fields.number(options, "sr", 1, 1e6) != 16_000:
        raise UserError("--sr: Qwen3-ASR hears 16,000 samples a second; leave it out")
    train = fields.listed(options["train_file"], "train_file", there)
    processes = launch.nodes * ((launch.processes or launch.visible or 1) if launch.distributed else 1)
    devices = launch.nodes * max(1, launch.visible if launch.visible and not launch.distributed else processes)
    each, accumulated = fields.number(options, "batch_size", 1, 65536), fields.number(options, "grad_acc", 1, 65536)
    batch = int(each * accumulated * (processes if launch.distributed else devices))
    spoken = fields.language(train, language, notes)
    base = fields.base(options["model_path"], there, notes)
    epochs = fields.epochs(options, notes)
    steps = math.ceil(train.rows * 0.95 / batch) * epochs if train.rows else None
    shape, warmup = fields.schedule(options, steps, notes)
    rate = fields.rate(options, notes)
    every = fields.every(options, steps, epochs, notes)
    _say_general(each, accumulated, processes, notes)
    notes.say("data.keep", "the script trains on every row; what is dropped here is counted by reason")
    keep = max(1, int(fields.number(options, "save_total_limit", 1, 1000)) - 1)
    hebrew = spoken == "Hebrew"
    source = fields.place(train, options["train_file"], rounds, notes)
    test = fields.test(options, there, rounds, notes)
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
        (2, "model.language", f"language: {plain(spoken)}{context}"),
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


def _say_general(each: float, accumulated: float, processes: int, notes: Notes) -> None:
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


def _times(count: int) -> str:
    return "one line" if count == 1 else f"{count} lines"
