"""Checks of the round file and of the machine: fit, secrets, pins, packages, GPUs, disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from caspi.doctor.check import Lines, Patient
from caspi.errors import UserError
from caspi.families.counts import parameter_counts
from caspi.plan import make_plan

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a Weights & Biases key": r"\b(?:wandb_v1_\w{20,}|(?i:wandb)[^\n]{0,20}[=:]\s*['\"]?[0-9a-f]{40}\b)",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password": r"(?i)\b(?:password|passwd|api_key|secret|token)\s*[=:]\s*['\"]?[^\s'\"{}$,]{8,}",
}

WANTED = {"transformers": "4.57.6", "qwen-asr": "0.0.6"}


def check_plan(patient: Patient) -> Lines:
    """The round fits the cluster."""
    try:
        plan = make_plan(patient.spec, patient.cluster)
    except UserError as error:
        for problem in error.problems:
            yield "blocked", problem
        return
    cap = f"micro-batches of at most {plan.batch.micro_batch_seconds:.0f} padded seconds"
    sharded = ", weights and optimizer sharded (FSDP)" if plan.memory and plan.memory.strategy == "fsdp" else ""
    yield "ok", f"fits {plan.machine}: {cap}{sharded}"


def check_secrets(patient: Patient) -> Lines:
    """No secret stands in the round file."""
    text = patient.file.read_text(encoding="utf-8") if patient.file else patient.spec.model_dump_json()
    for kind, pattern in SECRETS.items():
        if match := re.search(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield "blocked", f"line {line} looks like {kind}: take it out, revoke it, and pass it by environment"
            return
    yield "ok", "none in the round file; tokens come from HF_TOKEN and WANDB_API_KEY"


def check_pins(patient: Patient) -> Lines:
    """Everything from a hub is pinned to a commit."""
    spec = patient.spec
    places = [("model", spec.model.revision)]
    places += [(f"data.sources[{index}]", source.revision) for index, source in enumerate(spec.data.sources)]
    places += [(f"benchmark.sets[{index}]", one.revision) for index, one in enumerate(spec.benchmark.sets)]
    pins = [(where, revision) for where, revision in places if revision]
    moving = [(where, revision) for where, revision in pins if not re.fullmatch(r"[0-9a-f]{40}", revision)]
    for where, revision in moving:
        yield "blocked", f'{where}.revision = "{revision}" moves: write the 40-digit commit that it stands for today'
    if not moving:
        yield "ok", f"{len(pins)} pinned by commit" if pins else "nothing comes from a hub"


def check_packages(_: Patient) -> Lines:
    """The packages that must match do."""
    wrong = False
    for package, version in WANTED.items():
        try:
            there = metadata.version(package)
        except metadata.PackageNotFoundError:
            wrong = True
            yield "blocked", f"{package} is not installed: pip install 'caspi[train]' -c constraints.txt"
            continue
        if there != version:
            wrong = True
            yield "blocked", f"{package} is {there}, and qwen-asr needs {version}: install with -c constraints.txt"
    if not wrong:
        yield "ok", ", ".join(f"{package} {version}" for package, version in WANTED.items())


def check_gpus(patient: Patient) -> Lines:
    """The GPUs of the cluster file are here, or training runs elsewhere."""
    wanted = patient.cluster.gpus_per_node
    if not wanted:
        yield "ok", f"none wanted; {os.cpu_count()} CPU cores"
        return
    program = shutil.which("nvidia-smi")
    if program is None:
        yield "note", f"the cluster has {wanted} a node; this machine has none, so they are not checked"
        return
    query = [program, "--query-gpu=name", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    names = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    if len(names) < wanted:
        yield "blocked", f"gpus_per_node = {wanted}, but nvidia-smi lists {len(names)}"
    else:
        yield "ok", f"{len(names)} x {names[0]}"


def check_disk(patient: Patient) -> Lines:
    """The checkpoints fit on the disk that this command stands on."""
    counts = parameter_counts(patient.spec.model)
    if counts is None:
        yield "note", f"{patient.spec.model.base} is not here, so its checkpoints can't be sized"
        return
    keep = patient.spec.train.keep
    trainable = max(sum(counts.group(name) for name in phase.rates) for phase in patient.spec.train.phases)
    one = 4 * counts.total + 8 * trainable  # fp32 weights, and two moments of what moves
    need = one * (keep.last + keep.best + 1) + 4 * counts.total  # one more while it is written, and the model
    free = shutil.disk_usage(Path.cwd()).free
    line = f"checkpoints need {_size(need)} ({_size(one)} each), {_size(free)} are free here"
    if need < free:
        yield "ok", line
    elif patient.cluster.gpus_per_node and shutil.which("nvidia-smi") is None:
        yield "note", f"{line}; the cluster's own disk is not looked at"
    else:
        yield "blocked", f"{line}: keep fewer, or use another disk"


def _size(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e6:,.0f} MB"
