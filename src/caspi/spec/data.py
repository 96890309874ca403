"""The data of a round: sources, text rules, filters, split, audit thresholds, test sets."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from caspi.spec.values import Frozen, Name, Share

Normaliser = Literal["plain-1", "hebrew-1", "hebrew-2", "english-upper-1"]
"""Named, versioned text rules for training text; corpus/text.py holds them."""

Profile = Literal["plain", "ivrit-leaderboard", "hebrew-fair"]
"""Named text rules for scoring; scoring/profiles.py holds them."""


class Source(Frozen):
    """Where utterances come from: exactly one of `path` and `hub`."""

    name: Name
    """How records and manifests call it."""
    path: str | None = None
    """A folder or file, relative to the round file: Hugging Face parquet or arrow, a JSONL in the upstream
    format, or a folder with a TSV (Common Voice)."""
    hub: str | None = Field(default=None, pattern=r"^[\w][\w.-]*/[\w][\w.-]*$")
    """A Hugging Face dataset repository."""
    revision: str | None = Field(default=None, min_length=1)
    """The commit of the repository; required with `hub`."""
    files: str = "**/*"
    """Which files of it, as a glob: for example `data/train-*.parquet` or `validated.tsv`."""
    domain: str = Field(default="general", min_length=1, max_length=40)
    """The domain by which the audit and the benchmark break figures down."""
    weight: float = Field(default=1.0, gt=0, le=10)
    """How often an utterance is seen an epoch: 0.5 is every other one, 2 is twice."""
    columns: dict[Literal["audio", "text", "recording", "speaker", "domain"], str] = {}
    """Names of columns that differ from the usual ones."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path (local files) and hub (a Hugging Face repository)")
        if self.hub and not self.revision:
            raise ValueError(f'revision is missing: pin the commit of {self.hub}, for example revision: "89ab..."')
        if self.path and self.revision:
            raise ValueError("revision only goes with hub")
        return self


class Filters(Frozen):
    """What is kept. Everything dropped is counted by reason in the ledger."""

    seconds: tuple[float, float] = (0.5, 30.0)
    """[at least, at most]."""
    characters_per_second: tuple[float, float] = (1.0, 30.0)
    """[at least, at most], of the normalised text. Hebrew speech has 8 to 15; far outside, text and audio do not
    belong together."""

    @field_validator("seconds", "characters_per_second")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"write [at least, at most], got [{value[0]:g}, {value[1]:g}]")
        return value


class Split(Frozen):
    """Train and dev never share a value of these keys."""

    by: list[Literal["recording", "speaker", "text"]] = Field(default=["recording", "speaker", "text"], min_length=1)
    """What no two sides may share. A key that ties everything together is refused, with the way out."""
    eval: Share = 0.05
    """How much goes to dev."""

    @field_validator("eval")
    @classmethod
    def _some(cls, value: float) -> float:
        if not 0 < value <= 0.5:
            raise ValueError("the dev share lies above 0% and at most at 50%")
        return value


class Expected(Frozen):
    """What the export should find: `caspi plan` uses it before the export ran, and the export refuses other data."""

    train: int = Field(ge=1)
    """Utterances."""
    eval: int = Field(ge=1)
    """Utterances."""
    hours: float | None = Field(default=None, gt=0)
    """Of both."""
    within: Share = 0.01
    """How far the export may be from it."""


class DataSpec(Frozen):
    """What the model learns from."""

    sources: list[Source] = Field(min_length=1)
    """Where utterances come from."""
    text: Normaliser = "plain-1"
    """Named, versioned rules for the text that is trained on. A rule never changes under its name."""
    subset: Share | None = None
    """Only this share of the utterances, drawn by seed: for a first look at a large corpus."""
    keep: Filters = Filters()
    """What is kept of them."""
    split: Split = Split()
    """How dev is taken from them."""
    materialise: Literal["wav"] | None = None
    """Also write 16 kHz WAV files with NeMo manifests (and, for qwen3-asr, the upstream JSONL). Without it audio is
    read in place."""
    expected: Expected | None = None
    """What the export should find."""

    @field_validator("subset")
    @classmethod
    def _some(cls, value: float | None) -> float | None:
        if value == 0:
            raise ValueError("nothing would be left: write a share above 0%, or leave the field out for all")
        return value

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: list[Source]) -> list[Source]:
        return _distinct(sources)


class Sample(Frozen):
    """How many training utterances the audit listens to: a share, but at least so many (or all there are)."""

    share: Share = 0.10
    """Of the training utterances."""
    at_least: int = Field(default=2000, ge=1)
    """Utterances."""


class Limits(Frozen):
    """Upper bounds on the share of low-quality utterances; compared with the upper end of the 95% interval."""

    low_quality: Share
    """Of all utterances that are trained on."""
    any_domain: Share
    """Of those of any one domain."""


AuditCheck = Literal[
    "undecodable", "silent", "clipped", "quiet", "text_rate", "conflicting_text", "duplicate", "leaked"
]


class AuditSpec(Frozen):
    """Whether the data is worth GPU money. PROCEED, CAUTION (needs `caspi approve`), or STOP."""

    sample: Sample = Sample()
    """How much is listened to."""
    minimum: int = Field(default=100, ge=1)
    """Fewer utterances than this can't be judged: STOP."""
    proceed: Limits = Limits(low_quality=0.10, any_domain=0.15)
    """Below both limits: PROCEED."""
    caution: Limits = Limits(low_quality=0.15, any_domain=0.20)
    """Below both limits: CAUTION. Beyond: STOP."""
    leave_out: list[AuditCheck] = ["leaked"]
    """Findings whose utterances are left out of training. `leaked` and `duplicate` are looked for in all
    utterances, the others in the sample only, so set `sample.share: 100%` to leave out all of them."""

    @model_validator(mode="after")
    def _ordered(self) -> AuditSpec:
        for name in ("low_quality", "any_domain"):
            if getattr(self.caution, name) < getattr(self.proceed, name):
                raise ValueError(f"caution.{name} lies below proceed.{name}: CAUTION is the wider band")
        return self


class TestSet(Frozen):
    """Utterances for the benchmark, never trained on and never filtered."""

    __test__ = False  # not a pytest class

    name: Name
    """How scores call it."""
    path: str | None = None
    """As for a source."""
    hub: str | None = Field(default=None, pattern=r"^[\w][\w.-]*/[\w][\w.-]*$")
    """As for a source."""
    revision: str | None = Field(default=None, min_length=1)
    """As for a source."""
    files: str = "**/*"
    """As for a source."""
    domain: str = Field(default="general", min_length=1, max_length=40)
    """As for a source."""
    columns: dict[Literal["audio", "text", "recording", "speaker", "domain"], str] = {}
    """As for a source."""

    @model_validator(mode="after")
    def _one_place(self) -> TestSet:
        self.source()
        return self

    def source(self) -> Source:
        """The same place as a source of utterances."""
        return Source.model_validate(self.model_dump())


class Target(Frozen):
    """The WER in percent, averaged over the sets, that the round is for."""

    at_most: float = Field(gt=0)
    """The round has failed above it."""
    goal: float | None = Field(default=None, gt=0)
    """What is aimed at."""
    stretch: float | None = Field(default=None, gt=0)
    """What would be a pleasant surprise."""


Named = TypeVar("Named", Source, TestSet)


class BenchmarkSpec(Frozen):
    """How the model is judged."""

    sets: list[TestSet] = Field(min_length=1)
    """What it is tested on."""
    profiles: list[Profile] = Field(default=["plain"], min_length=1)
    """Text rules for scoring; the first one decides, all are reported."""
    target: Target | None = None
    """What the round is for."""

    @field_validator("sets")
    @classmethod
    def _names_differ(cls, sets: list[TestSet]) -> list[TestSet]:
        return _distinct(sets)


def _distinct(items: list[Named]) -> list[Named]:
    names = [item.name for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names must differ, {', '.join(twice)} stands twice")
    return items
