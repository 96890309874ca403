"""Utterances a second and peak memory of a training step: this engine against the usual way.

    python benchmarks/training.py                              # tiny model on a CPU: about 2 minutes
    python benchmarks/training.py --size 1.7b --device cuda    # random weights of the real size, bf16, on one GPU

The usual way is `upstream/recipe.py`: the Hugging Face Trainer on batches of a fixed size in random order. Both sides
train all weights of the same model on the same files (clips of the demo, joined to 1-15 s) in the same precision, with
the same number of utterances in a step and the same number of data workers, each in processes of its own, in turns.
An epoch warms up; the figures are medians over all epochs after it, and the largest memory of any process. The CPU
time is that of the training process alone, and hardly depends on what else the machine does. On a GPU both sides
recompute activations.

Exit code 1 when this engine is under twice as fast, or, on a GPU, over 0.8 times the memory, or its peak is more than
10% away from what `caspi plan` says.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile

DEMO = Path(__file__).parents[1] / "demo"
RATE = 16_000
REAL = "Qwen/Qwen3-ASR-1.7B"
SECONDS = (1.0, 15.0)
DENSE_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Multiply-adds x 2 a second that the data sheet promises, without sparsity."""


def main() -> int:
    options = _options()
    if options.side:
        print(json.dumps(_measured(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), options)
        runs: dict[str, list[dict[str, Any]]] = {"usual": [], "caspi": []}
        for _ in range(options.rounds):
            for side, found in runs.items():
                found.append(_in_a_process(side, folder))
    usual, caspi = (_together(found, options.utterances) for found in runs.values())
    ratio, memory = caspi["speed"] / usual["speed"], caspi["peak"] / usual["peak"]
    print(
        f"{options.size} on {options.device}: {options.utterances} clips of {SECONDS[0]:.0f}-{SECONDS[1]:.0f} s, "
        f"{options.batch} in a step; the usual way takes {options.micro} at once"
    )
    print(f"{'':10}{'utterances/s':>14}{'CPU ms each':>13}{'waited for data':>17}{'peak memory':>13}")
    for name, side in (("usual way", usual), ("caspi", caspi)):
        print(
            f"{name:10}{side['speed']:>14.2f}{1000 * side['cpu']:>13.1f}{side['waited']:>17.1%}"
            f"{side['peak'] / 1e6:>10.0f} MB"
        )
    print(f"{'ratio':10}{ratio:>14.2f}{caspi['cpu'] / usual['cpu']:>13.2f}{'':>17}{memory:>13.2f}")
    failed = ratio < 2
    if options.device == "cuda":
        estimate = caspi["peak"] / caspi["estimate"]
        print(f"peak / estimate of `caspi plan`: {estimate:.2f}; floating point used: {caspi['mfu']:.1%} of the device")
        failed |= memory > 0.8 or abs(estimate - 1) > 0.1
    print(json.dumps({"usual": usual, "caspi": caspi, "ratio": ratio, "memory": memory}))
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "1.7b"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--utterances", type=int, default=96, help="clips in an epoch (96)")
    parser.add_argument("--batch", type=int, default=16, help="utterances in an optimizer step, on both sides (16)")
    parser.add_argument("--micro", type=int, default=2, help="utterances that the usual way takes at once (2)")
    parser.add_argument("--epochs", type=int, default=3, help="of one process, the first to warm up (3)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side (3)")
    parser.add_argument("--workers", type=int, default=1, help="data workers of each side (1)")
    parser.add_argument("--peak-flops", type=float, help="of the device in bf16, where it is not known here")
    parser.add_argument("--side", choices=("usual", "caspi"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, folder = options.side, options.folder
        options = argparse.Namespace(**json.loads((folder / "options.json").read_text()), side=side, folder=folder)
    elif options.utterances % options.batch or options.batch % options.micro:
        parser.error("--utterances must be a multiple of --batch, and --batch of --micro")
    return options


def _prepare(folder: Path, options: argparse.Namespace) -> None:
    """Clips of mixed length, and the options for the processes."""
    given = {name: value for name, value in vars(options).items() if name not in ("side", "folder")}
    (folder / "options.json").write_text(json.dumps(given))
    spoken = [row for path in sorted((DEMO / "studio").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    random = np.random.default_rng(0)
    listed = []
    (folder / "clips").mkdir()
    for number in range(options.utterances):
        wanted, pieces, texts = random.uniform(*SECONDS) * RATE, [], []
        while sum(map(len, pieces)) < wanted:
            row = spoken[random.integers(len(spoken))]
            pieces.append(_decoded(row["audio"]["bytes"]))
            texts.append(row["text"])
        clip = np.concatenate(pieces)[: int(wanted)]
        soundfile.write(folder / "clips" / f"{number}.flac", clip, RATE)
        listed.append({"name": f"{number}.flac", "seconds": len(clip) / RATE, "text": " ".join(texts)})
    (folder / "clips.json").write_text(json.dumps(listed, ensure_ascii=False))


def _decoded(data: bytes) -> Any:
    from caspi.corpus.audio import decode

    return decode(data)


def _in_a_process(side: str, folder: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--side", side, "--folder", folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def _together(runs: Sequence[dict[str, Any]], utterances: int) -> dict[str, Any]:
    """Medians over the epochs of all runs."""
    epochs = [epoch for run in runs for epoch in run["epochs"]]
    seconds = statistics.median(epoch["seconds"] for epoch in epochs)
    together = {
        "speed": utterances / seconds,
        "cpu": statistics.median(epoch["cpu"] for epoch in epochs) / utterances,
        "waited": statistics.median(epoch["waited"] / epoch["seconds"] for epoch in epochs),
        "peak": max(run["peak"] for run in runs),
        "imported": runs[0]["imported"],
    }
    if runs[0].get("flops"):
        together |= {"estimate": runs[0]["estimate"], "mfu": runs[0]["flops"] / seconds / runs[0]["promised"]}
    return together


# --- one side, in a process of its own


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1 if options.device == "cpu" else 8)
    clips = json.loads((options.folder / "clips.json").read_text())
    measured = {"usual": _usual, "caspi": _caspi}[options.side](options, clips)
    cuda = options.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**measured, "peak": peak}


def _usual(options: argparse.Namespace, clips: list[dict[str, Any]]) -> dict[str, Any]:
    from upstream import recipe

    model = _model(options, clips)
    imported = _resident()
    timed = recipe.run(
        model.network.thinker.train(),
        _base(options, clips),
        [(options.folder / "clips" / clip["name"], clip["text"]) for clip in clips],
        options.epochs,
        options.micro,
        options.batch // options.micro,
        options.workers,
        options.device == "cuda",
        options.folder / "trainer",
    )
    waited = np.cumsum(timed.waits[: len(timed.ends)]).tolist()
    return {"epochs": _epochs(timed.ends, timed.cpu, waited, len(clips) // options.batch), "imported": imported}


def _caspi(options: argparse.Namespace, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """The engine's own steps: its batches, workers, optimizer and bookkeeping."""
    import torch

    from caspi.corpus.audio import AudioReader
    from caspi.corpus.manifest import Utterance
    from caspi.training.data import step_batches
    from caspi.training.distributed import processes
    from caspi.training.engine import Run, Work
    from caspi.training.optimizer import PhaseOptimizer
    from caspi.training.stopping import stop_requests

    spec, cluster, cap, estimate = _round(options)
    utterances = [
        Utterance(clip["name"], f"clips/{clip['name']}", clip["text"], clip["seconds"], "clips", "general")
        for clip in clips
    ]
    work = Work(
        spec=spec,
        cluster=cluster,
        family=_RandomWeights(options, clips),
        base=_base(options, clips),
        folder=Path(tempfile.mkdtemp(dir=options.folder)),
        train=utterances,
        dev=utterances[:1],
        reader=AudioReader({"clips": options.folder / "clips"}),
        max_padded_seconds=cap,
        identity="benchmark",
    )
    ends, cpu, waited = [], [], []
    with processes() as ranks, stop_requests() as stop:
        run = Run(work, ranks, stop)
        imported = _resident()
        (phase,) = run.phases
        optimizer = PhaseOptimizer(run.model, phase, run.settings.optimizer, run.settings.precision, ranks)
        run.rehearse(phase, optimizer)
        steps = step_batches(run.speech, run.orders, 0, phase.last_step, cluster.workers, ranks)
        for micro_batches in run.clock.waiting(steps):
            run.take_step(phase, optimizer, micro_batches)  # ends in numbers on the host: the device is done
            ends.append(time.monotonic())
            cpu.append(time.process_time())
            waited.append(run.clock.waited)
        found = {"epochs": _epochs(ends, cpu, waited, run.orders.steps_per_epoch), "imported": imported}
        if options.device == "cuda":
            name = torch.cuda.get_device_name()
            promised = options.peak_flops or next((f for kind, f in DENSE_BF16.items() if kind in name), float("nan"))
            found |= {"flops": _flops(run), "promised": promised, "estimate": estimate}
        run.close()
    return found


def _epochs(ends: list[float], cpu: list[float], waited: list[float], steps: int) -> list[dict[str, float]]:
    """Of each epoch but the first: seconds, seconds that the training process computed on the CPU, and seconds that
    it waited for data. `cpu` and `waited` are cumulated, as `ends` is."""
    marks = range(steps - 1, len(ends), steps)
    return [
        {name: each[last] - each[last - steps] for name, each in (("seconds", ends), ("cpu", cpu), ("waited", waited))}
        for last in marks[1:]
    ]


def _flops(run: Any) -> float:
    """Floating-point operations that one epoch needs: forward, and twice that backward. Recomputing is not counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for order in run.orders.from_step(0, run.orders.steps_per_epoch):
            if batch := run.speech[order].batch:
                run.model.network(**batch.to(run.ranks.device).tensors)
    return 3.0 * counter.get_total_flops()


def _resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# --- the model and the round


def _spec(options: argparse.Namespace) -> Any:
    from caspi.spec.models import Qwen3AsrModel

    return Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew")


def _round(options: argparse.Namespace) -> tuple[Any, Any, float, float]:
    """The round, the cluster, the cap on a micro-batch and the memory that `caspi plan` reckons with."""
    import torch

    from caspi.families.counts import parameter_counts
    from caspi.plan.memory import micro_batch_seconds
    from caspi.spec import ClusterSpec, RoundSpec

    cuda = options.device == "cuda"
    spec = RoundSpec.model_validate(
        {
            "round": "benchmark",
            "model": _spec(options).model_dump(),
            "data": {"sources": [{"name": "clips", "path": "clips"}], "keep": {"seconds": (0.5, SECONDS[1])}},
            "train": {
                "global_batch": options.batch,
                "precision": "bf16" if cuda else "fp32",
                "phases": [{"name": "full", "epochs": options.epochs, "rates": {"all": 2e-5}}],
                "augment": {"speed": [1.0], "specaugment": None},
                "schedule": {"warmup_steps": 1},
            },
            "benchmark": {"sets": [{"name": "test", "path": "test"}]},
        }
    )
    gpus: dict[str, Any] = {}
    if cuda:
        free, _ = torch.cuda.mem_get_info()
        gpus = {"gpus_per_node": 1, "gpu": {"product": torch.cuda.get_device_name(), "memory": free}}
    cluster = ClusterSpec.model_validate({"workers": options.workers, **gpus})
    known = _spec(options).model_copy(update={"base": {"tiny": "tiny", "1.7b": REAL}[options.size]})
    cap, memory = micro_batch_seconds(spec, cluster, parameter_counts(known))
    assert memory is not None
    return spec, cluster, cap, float(memory.total)


def _base(options: argparse.Namespace, clips: list[dict[str, Any]]) -> Path:
    """A folder with tokenizer, processor and the config of the size. The weights in it are those of the tiny model."""
    from caspi.families.counts_qwen3 import Qwen3Counts
    from caspi.families.qwen3_asr import QWEN3_ASR

    folder = QWEN3_ASR.prepare(_spec(options), [clip["text"] for clip in clips], 0, options.folder / "base")
    if options.size == "1.7b":
        real = Qwen3Counts.known()[REAL]
        for name, changes in (("config.json", real), ("preprocessor_config.json", {"feature_size": 128})):
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(_merged(values, changes)))
    return folder


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {n: _merged(values.get(n, {}), new) if isinstance(new, dict) else new for n, new in changes.items()}
    return {**values, **merged}


def _model(options: argparse.Namespace, clips: list[dict[str, Any]]) -> Any:
    return _RandomWeights(options, clips).load(_base(options, clips), _spec(options), options.device)


class _RandomWeights:
    """The family, but the real size gets random weights: their values change no time."""

    def __init__(self, options: argparse.Namespace, clips: list[dict[str, Any]]) -> None:
        self.options, self.clips = options, clips
        self.name = "qwen3-asr"

    def prepare(self, *_: Any) -> Path:
        return _base(self.options, self.clips)

    def load(self, folder: Path, spec: Any, device: Any) -> Any:
        import torch

        from caspi.families.qwen3_asr import QWEN3_ASR, Qwen3Asr
        from caspi.families.qwen3_backend import backend
        from caspi.families.qwen3_folder import read_layout

        if self.options.size == "tiny":
            return QWEN3_ASR.load(folder, spec, device)
        from transformers import Qwen2TokenizerFast

        config = backend().Qwen3ASRConfig.from_pretrained(folder)
        with torch.device(device):
            network = backend().Qwen3ASRForConditionalGeneration(config).float().eval()
        return Qwen3Asr(network, read_layout(folder), Qwen2TokenizerFast.from_pretrained(folder), spec)


if __name__ == "__main__":
    sys.exit(main())
