"""What a round is. The whole of it is digested; where it runs is in the cluster file (cluster.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from caspi.files import digest
from caspi.spec.data import AuditSpec, BenchmarkSpec, DataSpec
from caspi.spec.models import ModelSpec
from caspi.spec.values import Cost, Frozen, Name, Share

Rate = Annotated[float, Field(gt=0, lt=1)]


class Phase(Frozen):
    """A stretch of training: what moves, how fast, how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,20}$")
    """How metrics and the plan call it."""
    epochs: int = Field(ge=1, le=1000)
    """Times through the data."""
    rates: dict[str, Rate] = Field(min_length=1)
    """Peak learning rate of each parameter group that moves in this phase. Groups that are not named are frozen."""

    @field_validator("rates")
    @classmethod
    def _all_alone(cls, rates: dict[str, float]) -> dict[str, float]:
        if "all" in rates and len(rates) > 1:
            raise ValueError('"all" already holds every parameter: name it alone, or name the groups')
        kinds = [group.split(":")[0] for group in rates]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f'two groups "{kind}:N" overlap: keep the larger N')
        if "encoder" in kinds and "audio_top" in kinds:
            raise ValueError('"encoder" already holds its layers: take audio_top:N out, or name it instead')
        return rates


class Schedule(Frozen):
    """How the learning rate moves over all steps of the round."""

    shape: Literal["cosine", "linear", "constant", "noam"] = "cosine"
    """From the peak to 0 (constant: not at all; noam: as the inverse square root of the step, without an end)."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps from 0 to the peak at the start of the round."""
    rewarm_steps: int = Field(default=20, ge=0)
    """Steps of warm-up after each later phase begins: the optimizer is new and its first steps are rough."""


class Optimizer(Frozen):
    """AdamW (decoupled weight decay)."""

    weight_decay: float = Field(default=0.01, ge=0, lt=1)
    """Not on biases and norms."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the two moments."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of a global batch, per token."""


class SpecAugment(Frozen):
    """Masks on the spectrogram, [how many, how wide at most]: bins for freq, frames for time."""

    freq: tuple[int, int] = (2, 27)
    """Bins."""
    time: tuple[int, int] = (2, 80)
    """Frames of 10 ms."""

    @field_validator("freq", "time")
    @classmethod
    def _not_negative(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] < 0 or value[1] < 1:
            raise ValueError("write [how many masks, widest mask], for example [2, 27]")
        return value


class Noise(Frozen):
    """White noise below the speech."""

    snr: tuple[float, float] = (15.0, 30.0)
    """[loudest, quietest] in dB of speech over noise, drawn evenly."""
    share: Share = 0.5
    """Of the utterances, drawn anew each epoch."""

    @field_validator("snr")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not -10 <= value[0] <= value[1] <= 80:
            raise ValueError("write [loudest, quietest] in dB between -10 and 80, for example [15, 30]")
        return value


class Augment(Frozen):
    """Seeded by (seed, epoch, utterance): the same on any number of processes. Off in evaluation."""

    specaugment: SpecAugment | None = None
    """Masks on the spectrogram; none without it."""
    speed: list[float] = Field(default=[1.0], min_length=1)
    """Speed factors, drawn evenly for each utterance and epoch."""
    noise: Noise | None = None
    """Noise under the speech; none without it."""

    @field_validator("speed")
    @classmethod
    def _sane(cls, value: list[float]) -> list[float]:
        if any(not 0.5 <= factor <= 2.0 for factor in value):
            raise ValueError("a speed factor lies between 0.5 and 2.0")
        return value


class Evaluate(Frozen):
    """Scoring on dev (eval.jsonl) while training, and at the end of each phase."""

    every_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two scores."""
    utterances: int = Field(default=1000, ge=1)
    """How many dev utterances, chosen once by seed. Below 500 the WER moves by itself."""


class Keep(Frozen):
    """Which checkpoints stay on disk."""

    every_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints."""
    last: int = Field(default=2, ge=1)
    """The newest ones."""
    best: int = Field(default=1, ge=1)
    """Those with the best dev WER."""


class Spike(Frozen):
    """A loss that jumped, as it does when a phase begins, and does not come back."""

    times: float = Field(default=2.0, gt=1)
    """How far above the best level so far (medians of 20 steps)."""
    steps: int = Field(default=200, ge=20)
    """For how long."""


class Stop(Frozen):
    """When training stops by itself. NaN always stops it."""

    cost: Cost | None = None
    """Stop when the GPUs have cost this much, by the price in the cluster file."""
    wer_above: float | None = Field(default=None, gt=0)
    """Stop when the dev WER after warm-up is above this."""
    no_gain_after_epochs: int | None = Field(default=None, ge=1)
    """Stop when the best dev WER is this many epochs old."""
    spike: Spike | None = None
    """Stop when the loss spikes and stays up. Without it a spike is a warning in the metrics."""


class Lora(Frozen):
    """Low-rank adapters beside the matrices of the language model (ctc: of the encoder). They move as the group `lora`
    and are merged into the weights of every checkpoint, so that it loads anywhere."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Inner width."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what goes into an adapter."""
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1
    )
    """Which matrices: of attention (q, k, v, o), of the feed-forward part (gate, up, down)."""
    beside_groups: bool = False
    """Whether other groups may move in full beside the adapters. Not by accident: it has to be said."""


class TrainSpec(Frozen):
    """How the weights move."""

    global_batch: int = Field(ge=1, le=65536)
    """Utterances an optimizer step, over all processes. How they are split follows from the cluster."""
    phases: list[Phase] = Field(min_length=1)
    """What moves, how fast, how long: one after another."""
    schedule: Schedule = Schedule()
    """How the rates move."""
    optimizer: Optimizer = Optimizer()
    """What moves the weights."""
    lora: Lora | None = None
    """Adapters; none without it."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the forward pass (autocast). Master weights and optimizer are always fp32."""
    augment: Augment = Augment()
    """How the audio varies from epoch to epoch."""
    evaluate: Evaluate = Evaluate()
    """How often dev is scored."""
    keep: Keep = Keep()
    """Which checkpoints stay."""
    stop: Stop = Stop()
    """When to stop early."""
    final: Literal["best", "last"] = "best"
    """Which checkpoint becomes the model: the best on dev, or the last."""
    average: int | None = Field(default=None, ge=2, le=20)
    """Average the weights of so many best checkpoints into one more candidate, scored on dev as they are."""

    @field_validator("phases")
    @classmethod
    def _names_differ(cls, phases: list[Phase]) -> list[Phase]:
        names = [phase.name for phase in phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must differ, got {', '.join(names)}")
        return phases

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        groups = {group for phase in self.phases for group in phase.rates}
        problems = []
        if self.lora and "lora" not in groups:
            problems.append('lora: no phase moves it; name the group "lora" in phases[].rates')
        if self.lora is None and "lora" in groups:
            problems.append('phases: the group "lora" needs train.lora, for example lora: {rank: 16, alpha: 32}')
        if self.lora and len(groups) > 1 and "lora" in groups and not self.lora.beside_groups:
            named = ", ".join(sorted(groups - {"lora"}))
            problems.append(
                f"lora: {named} would move in full beside the adapters; if so, say lora.beside_groups: true"
            )
        if self.average and self.keep.best < self.average:
            problems.append(
                f"average = {self.average}: so many checkpoints must be kept, and keep.best is {self.keep.best}"
            )
        if self.average and self.final == "last":
            problems.append("average: it is a candidate for the best; it does not go with final: last")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class RoundSpec(Frozen):
    """A round of fine-tuning: what is trained, on what, how it is judged."""

    round: Name
    """The name of the round: of its directory, its Helm release, its W&B run."""
    parent: Name | None = None
    """The round whose model this one starts from; also the baseline to beat."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Of the split, the batches, the augmentation and all that is drawn."""
    model: ModelSpec
    """What is trained."""
    data: DataSpec
    """What the model learns from."""
    audit: AuditSpec = AuditSpec()
    """Whether the data is worth it."""
    train: TrainSpec
    """How the weights move."""
    benchmark: BenchmarkSpec
    """How the model is judged."""

    @model_validator(mode="after")
    def _consistent(self) -> RoundSpec:
        problems = [
            f"train.phases[{index}].rates: {problem}"
            for index, phase in enumerate(self.train.phases)
            for group in phase.rates
            if group != "lora" and (problem := self.model.group_problem(group))
        ]
        if self.parent == self.round:
            problems.append(f'parent: "{self.parent}" is this round itself')
        for shared in sorted({s.name for s in self.data.sources} & {s.name for s in self.benchmark.sets}):
            problems.append(f'benchmark.sets: "{shared}" is also the name of a source; the names must differ')
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def digest(self) -> str:
        """sha256 of the whole spec with its defaults: the identity of the round. What is not there is not digested,
        so that a field that a later version adds leaves the rounds of before as they are."""
        return digest(self.model_dump(mode="json", exclude_none=True))
