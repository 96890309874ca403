"""The model card: what the records of a round say about its model. Equal records give equal bytes, no path and no
host of this machine stands in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from caspi.errors import UserError
from caspi.files import digest
from caspi.records.record import Record
from caspi.records.results import (
    AuditResults,
    BenchmarkResults,
    CompareResults,
    Estimate,
    ExportResults,
    Score,
    SourceLedger,
    TrainResults,
)
from caspi.records.round_dir import RoundDir
from caspi.serving.languages import NAMES
from caspi.spec.data import Source
from caspi.spec.models import is_made_here, is_repository

LIBRARIES = {"qwen3-asr": "qwen-asr", "ctc": "transformers"}

SNIPPETS = {
    "qwen3-asr": """\
pip install qwen-asr

from qwen_asr import Qwen3ASRModel

model = Qwen3ASRModel.from_pretrained("{repository}")
print(model.transcribe("clip.wav", language=None)[0].text)  # qwen-asr raises for languages that it has no name for
""",
    "ctc": """\
pip install transformers

from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", "{repository}")
print(recognise("clip.wav")["text"])
""",
}


def model_card(round_dir: RoundDir, repository: str) -> str:
    """README.md of the model of a trained round, for the repository it goes to.

    UserError when the round was not trained, or was benchmarked with another model.
    """
    trained = round_dir.succeeded("train")
    benchmark = _benchmark(round_dir, trained)
    parts = [
        _front_matter(round_dir, repository, benchmark),
        _what(round_dir, repository, trained),
        _scores(round_dir, benchmark),
        _comparison(round_dir),
        _use(round_dir, repository),
        _data(round_dir),
        _origin(round_dir, trained),
    ]
    return "\n".join(part for part in parts if part)


def model_files(trained: Record) -> dict[str, str]:
    """sha256 of each file of the model that training made, by name."""
    return {
        name.removeprefix("../model/"): sha for name, sha in trained.outputs.items() if name.startswith("../model/")
    }


def _benchmark(round_dir: RoundDir, trained: Record) -> BenchmarkResults | None:
    record = round_dir.record("benchmark")
    if record is None or record.status != "succeeded":
        return None
    results = BenchmarkResults.model_validate(record.results)
    if results.model != digest(model_files(trained)):
        raise UserError(
            f"the benchmark is of another model than the one that is there; run `caspi run {round_dir.path}`",
            where=str(round_dir.path),
        )
    return results


def _front_matter(round_dir: RoundDir, repository: str, benchmark: BenchmarkResults | None) -> str:
    spec = round_dir.spec
    model = spec.model
    found: dict[str, Any] = {
        "library_name": LIBRARIES[model.family],
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["caspi", model.family],
    }
    code = next((code for code, name in NAMES.items() if name == model.language), None)
    if code:
        found["language"] = [code]
    if is_repository(model.base):
        found["base_model"] = model.base
        found["base_model_relation"] = "finetune"
    if datasets := sorted({source.hub for source in spec.data.sources if source.hub}):
        found["datasets"] = datasets
    if benchmark:
        found["metrics"] = ["wer", "cer"]
        found["model-index"] = [{"name": repository.split("/")[1], "results": _results(round_dir, benchmark)}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---\n"


def _results(round_dir: RoundDir, benchmark: BenchmarkResults) -> list[dict[str, Any]]:
    """The hub's form of the deciding profile's error rates, in percent."""
    profile = round_dir.spec.benchmark.profiles[0]
    found = []
    for one in round_dir.spec.benchmark.sets:
        score = _score(benchmark, f"set:{one.name}", profile)
        dataset = {"name": one.name, "type": one.hub or one.name}
        if one.revision:
            dataset["revision"] = one.revision
        metrics = [
            {"type": kind, "name": f"{kind.upper()} ({profile})", "value": round(100 * estimate.value, 2)}
            for kind, estimate in (("wer", score.wer), ("cer", score.cer))
        ]
        task = {"type": "automatic-speech-recognition", "name": "speech recognition"}
        found.append({"task": task, "dataset": dataset, "metrics": metrics})
    return found


def _what(round_dir: RoundDir, repository: str, trained: Record) -> str:
    spec, results = round_dir.spec, TrainResults.model_validate(trained.results)
    base = "a small model from random weights, for trying things" if is_made_here(spec.model.base) else _base(round_dir)
    language = f" for {spec.model.language}" if spec.model.language else ""
    hours = ""
    if export := _export(round_dir):
        hours = f", {export.train_hours:,.1f} hours"
    parent = f", after round `{spec.parent}`" if spec.parent else ""
    return (
        f"# {repository.split('/')[1]}\n\n"
        f"Fine-tuned{language} from {base}, on {results.utterances:,} utterances{hours}{parent}. "
        f"Made by Caspi as round `{spec.round}`; every figure here comes from the records of that round.\n"
    )


def _scores(round_dir: RoundDir, benchmark: BenchmarkResults | None) -> str:
    if benchmark is None:
        return "## Error rates\n\nNot measured: the round was not benchmarked.\n"
    spec = round_dir.spec
    lines = ["## Error rates", "", "In percent, with 95% intervals; lower is better.", ""]
    for profile in spec.benchmark.profiles:
        groups = [f"set:{one.name}" for one in spec.benchmark.sets]
        rows = [_score(benchmark, group, profile) for group in (*groups, "average")]
        lines += [f"Text rules `{profile}`:", ""]
        lines += _table(
            ("test set", "utterances", "WER", "CER"),
            [
                (score.group.removeprefix("set:"), f"{score.utterances:,}", _percent(score.wer), _percent(score.cer))
                for score in rows
            ],
        )
    return "\n".join(
        [*lines, f"Raw output that repeats itself: {benchmark.loops}. Empty output: {benchmark.empty}.", ""]
    )


def _comparison(round_dir: RoundDir) -> str:
    record = round_dir.record("compare")
    if record is None or record.status != "succeeded":
        return ""
    results = CompareResults.model_validate(record.results)
    profile = round_dir.spec.benchmark.profiles[0]
    rows = [
        (
            delta.group.removeprefix("set:"),
            f"{100 * delta.baseline_wer:.1f}",
            f"{100 * delta.candidate_wer:.1f}",
            f"{100 * delta.difference.value:+.1f} ({100 * delta.difference.low:+.1f} to "
            f"{100 * delta.difference.high:+.1f})",
        )
        for delta in results.deltas
        if delta.profile == profile and (delta.group.startswith("set:") or delta.group == "average")
    ]
    head = ("test set", f"WER of {results.baseline}", f"of {results.candidate}", "difference (95%)")
    lines = [f"## Against round `{results.baseline}`", "", results.sentence, "", *_table(head, rows)]
    return "\n".join([*lines, f"Text rules `{profile}`; the same utterances, paired.", ""])


def _use(round_dir: RoundDir, repository: str) -> str:
    model = round_dir.spec.model
    install, _, code = SNIPPETS[model.family].format(repository=repository).partition("\n\n")
    lines = ["## Use", "", "```", install, "```", "", "```python", code.rstrip(), "```", ""]
    return "\n".join(
        [*lines, f"Or as a server with the OpenAI API: `caspi serve FOLDER`, of a copy of {repository}.", ""]
    )


def _data(round_dir: RoundDir) -> str:
    spec, export = round_dir.spec, _export(round_dir)
    record = round_dir.record("export")
    inputs = record.inputs if record else {}
    ledgers = {ledger.name: ledger for ledger in (*export.sources, *export.sets)} if export else {}

    def rows(sources: Iterable[Source]) -> list[Sequence[str]]:
        return [_source(source, ledgers.get(source.name), inputs.get(f"data {source.name}")) for source in sources]

    head = ("name", "where", "revision", "kept of read", "hours", "licence")
    return "\n".join(
        [
            "## Data",
            "",
            "Licences are not recorded: look at each source before you use the model.",
            "",
            "Trained on:",
            "",
            *_table(head, rows(spec.data.sources)),
            "Tested on:",
            "",
            *_table(head, rows(one.source() for one in spec.benchmark.sets)),
        ]
    )


def _source(source: Source, ledger: SourceLedger | None, sha: str | None) -> Sequence[str]:
    """A row of the data table. Of local data its digest, never its path."""
    kept = f"{ledger.kept:,} of {ledger.read:,}" if ledger else ""
    hours = f"{ledger.hours:,.2f}" if ledger else ""
    if source.hub:
        return source.name, source.hub, str(source.revision), kept, hours, "unknown"
    return source.name, "local files", f"sha256:{sha[:16]}" if sha else "", kept, hours, "unknown"


def _origin(round_dir: RoundDir, trained: Record) -> str:
    spec, results = round_dir.spec, TrainResults.model_validate(trained.results)
    audit = round_dir.record("audit")
    facts = {
        "round": f"{spec.round}, sha256:{spec.digest}",
        "base": _base(round_dir),
        "parent": spec.parent or "none",
        "training": f"{results.steps:,} steps of {spec.train.global_batch} utterances, seed {spec.seed}; "
        + "; ".join(
            f"phase {phase.name}: {phase.trainable:,} of {phase.parameters:,} parameters, "
            + ", ".join(f"{group} {rate:.1e}" for group, rate in phase.rates.items())
            for phase in results.phases
        ),
        "chosen": f"{_chosen(results)}, by a dev WER of {100 * results.chosen_wer:.1f}%",
        "adapters": f"LoRA of rank {results.adapters.rank}, merged" if results.adapters else "none",
        "audit": AuditResults.model_validate(audit.results).decision if audit and audit.results else "not run",
        "Caspi": trained.circumstances.git or "not from a checkout",
        "packages": ", ".join(f"{name} {version}" for name, version in trained.circumstances.versions.items()),
    }
    return "\n".join(["## How it was made", "", *_table(("what", "which"), list(facts.items()))])


def _chosen(results: TrainResults) -> str:
    if results.chosen == "average" and results.average:
        return f"the average of the checkpoints of steps {', '.join(f'{step:,}' for step in results.average.of)}"
    return f"step {results.chosen_step:,}"


def _base(round_dir: RoundDir) -> str:
    """The base model in words; of a local folder its name alone."""
    model = round_dir.spec.model
    if is_repository(model.base):
        return f"{model.base} at {model.revision}"
    return model.base if is_made_here(model.base) else f"a local model ({model.base.rstrip('/').rpartition('/')[2]})"


def _export(round_dir: RoundDir) -> ExportResults | None:
    record = round_dir.record("export")
    done = record is not None and record.status == "succeeded"
    return ExportResults.model_validate(record.results) if record and done else None


def _score(benchmark: BenchmarkResults, group: str, profile: str) -> Score:
    return next(score for score in benchmark.scores if score.group == group and score.profile == profile)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines: list[Sequence[str]] = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines] + [""]


def _cell(text: str) -> str:
    """What people wrote must not end a cell or become markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\|<>[]`" else char for char in flat)
