"""What each stage finds: the typed `results` of its record."""

from __future__ import annotations

from typing import Literal

from caspi.records.record import Stored


class SourceLedger(Stored):
    """read == kept + sum(dropped); kept == train + eval (a test set has neither)."""

    name: str
    read: int
    kept: int
    dropped: dict[str, int]
    """By reason, for example {"too short": 3, "not decodable": 1}."""
    train: int
    eval: int
    hours: float
    """Of what was kept."""


class ExportResults(Stored):
    """Results of export."""

    sources: list[SourceLedger]
    sets: list[SourceLedger]
    train: int
    eval: int
    train_hours: float
    eval_hours: float
    text: str
    """The normaliser's name."""


class Estimate(Stored):
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


class DomainAudit(Stored):
    """The audit of one domain."""

    domain: str
    utterances: int
    """In the training manifest."""
    sampled: int
    low_quality: Estimate
    median_seconds: float
    median_characters_per_second: float


class Finding(Stored):
    """Something wrong with one utterance; audit/findings.jsonl holds one a line."""

    utterance: str
    check: str
    """undecodable, silent, clipped, quiet, text_rate, conflicting_text, duplicate, leaked."""
    detail: str
    """For people, with figures: `peak -62 dBFS`, `same audio as crowd/17 with other text`."""
    domain: str
    source: str
    text: str
    audio: str


class AuditResults(Stored):
    """Results of audit."""

    decision: Literal["PROCEED", "CAUTION", "STOP"]
    reasons: list[str]
    sampled: int
    utterances: int
    low_quality: Estimate
    """Of the whole training manifest: strata weighted by their size."""
    domains: list[DomainAudit]
    findings: dict[str, int]
    """How many, by check."""
    left_out: int
    """Utterances that training leaves out (audit/left_out.json)."""
    fingerprinted: int = 0
    """Clips among which copies encoded anew were looked for; copies of equal bytes are looked for in all."""
    shared_texts: int = 0
    """Utterances of dev and the test sets whose text is also in training. No leak by itself."""
    alignment: Literal["not run"] = "not run"
    """Place of the alignment check, which comes later."""


class PhaseResults(Stored):
    """What one phase did."""

    name: str
    first_step: int
    last_step: int
    """One past the last optimizer step of the phase."""
    trainable: int
    parameters: int
    rates: dict[str, float]


class DevScore(Stored):
    """A score on dev while training."""

    step: int
    epoch: float
    wer: float
    cer: float
    loss: float


class AverageScore(DevScore):
    """A score on dev of the average of several checkpoints."""

    of: list[int]
    """Their steps, the best one first."""


class TrainWarning(Stored):
    """Something that looked wrong while training, said once."""

    step: int
    name: str
    """spike, vanishing gradient, exploding gradient, plateau, stuck WER."""
    message: str


class SourceSeen(Stored):
    """How often training saw a source."""

    utterances: int
    """Distinct ones to train on."""
    epochs: float
    """How many times each was taken on average: weights and early stops included."""


class Adapters(Stored):
    """LoRA as it was trained; the model has it merged."""

    rank: int
    alpha: float
    matrices: int
    """How many have an adapter."""
    parameters: int


class TrainResults(Stored):
    """Results of train."""

    base: str
    """What the weights started from: `tiny`, a repository@revision, or the parent round."""
    steps: int
    utterances: int
    """Distinct training utterances."""
    phases: list[PhaseResults]
    dev: list[DevScore]
    chosen_step: int
    chosen_wer: float
    tied: list[str]
    """Tied tensors, said once: `lm_head is embed_tokens`."""
    stopped: str | None = None
    """Why training ended before its last step, when it did."""
    left_out: dict[str, int] = {}
    """Utterances that the model can't learn from, by reason; `utterances` is without them."""
    average: AverageScore | None = None
    """The average of the best checkpoints as a candidate, where the round asks for one."""
    chosen: Literal["step", "average"] = "step"
    """What the model is: the weights of chosen_step, or that average."""
    sources: dict[str, SourceSeen] = {}
    """How often each source was seen, by name."""
    warnings: list[TrainWarning] = []
    """In the order they came."""
    adapters: Adapters | None = None
    """None when the weights moved themselves."""


class Score(Stored):
    """Corpus error rates of one group of utterances under one profile."""

    group: str
    """`set:NAME`, `domain:NAME`, or `all` (pooled) and `average` (the mean over the sets)."""
    profile: str
    utterances: int
    words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: Estimate
    cer: Estimate


class BenchmarkResults(Stored):
    """Results of benchmark."""

    model: str
    """sha256 of the model folder."""
    scores: list[Score]
    loops: int
    """Hypotheses that repeat themselves, measured on raw output."""
    empty: int
    """Empty hypotheses; their words count as deletions."""
    target_met: bool | None = None


class Delta(Stored):
    """Candidate minus baseline on one group and profile; negative is better."""

    group: str
    profile: str
    utterances: int
    baseline_wer: float
    candidate_wer: float
    difference: Estimate
    """Of the WER, paired bootstrap over utterances, 95%."""
    relative: float
    """difference / baseline WER."""


class CompareResults(Stored):
    """Results of compare."""

    baseline: str
    candidate: str
    deltas: list[Delta]
    verdict: Literal["better", "worse", "no difference shown"]
    sentence: str
    """The verdict in one sentence with its figures."""


class ReportResults(Stored):
    """Results of report."""

    verdict: str
    """The sentence at the top of the page."""
    predictions: int
    """Shown as examples."""
    clips: int
    """Clips that can be played in the page."""
