"""Checks of the data: text rules, formats, language. Each bug that people met in the wild has a judge by name."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import soundfile

from caspi.corpus.containers import foreign_format, suffix_of
from caspi.corpus.roots import locate
from caspi.corpus.sources import Row, rows, shards
from caspi.corpus.text import normalise
from caspi.doctor.check import Lines, Patient
from caspi.errors import UserError
from caspi.spec.data import Source
from caspi.spec.models import Qwen3AsrModel

LOOKED_AT = 64  # rows of each source

SCRIPTS = {
    "Hebrew": r"[\u05D0-\u05EA]",
    "Yiddish": r"[\u05D0-\u05EA]",
    "Arabic": r"[\u0621-\u064A]",
    "Persian": r"[\u0621-\u06CC]",
    "Russian": r"[\u0400-\u04FF]",
    "Greek": r"[\u0370-\u03FF]",
    "English": r"[A-Za-z]",
    "German": r"[A-Za-zÄÖÜäöüß]",
    "French": r"[A-Za-zÀ-ÿ]",
    "Spanish": r"[A-Za-zÀ-ÿ]",
    "Chinese": r"[\u4E00-\u9FFF]",
    "Japanese": r"[\u3040-\u30FF\u4E00-\u9FFF]",
    "Korean": r"[\uAC00-\uD7AF]",
}

# The languages that qwen-asr 0.0.6 takes by name; a test compares this with the package.
QWEN_LANGUAGES = frozenset(
    (
        "Arabic", "Cantonese", "Chinese", "Czech", "Danish", "Dutch", "English", "Filipino", "Finnish", "French",
        "German", "Greek", "Hindi", "Hungarian", "Indonesian", "Italian", "Japanese", "Korean", "Macedonian", "Malay",
        "Persian", "Polish", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Thai", "Turkish", "Vietnamese",
    )
)  # fmt: skip


def check_normaliser(patient: Patient) -> Lines:
    """The text rules do what they say on known traps."""
    name = patient.spec.data.text
    yield from judge_normaliser(name, lambda text: normalise(name, text))


def judge_normaliser(name: str, rule: Callable[[str], str]) -> Lines:
    """Probe text rules with the bugs that were met in the wild."""
    problems = []
    if name.startswith("hebrew"):
        if "??" in rule("מה??? כן!!!"):
            problems.append(r"dead regex: repeated punctuation stays (r'\\1' never matches; write r'\1')")
        if "ביתספר" in rule("בית־ספר"):
            problems.append("glued words: the maqaf is stripped with the vowel points, so two words become one")
        if rule("שָׁלוֹם") != "שלום":
            problems.append("vowel points stay")
    if name.startswith("english-upper") and rule("“Don’t stop,” he said—") != "DON'T STOP HE SAID":
        problems.append("letters or apostrophes that an upper-case vocabulary lacks stay")
    probes = [rule("  שלום   עולם "), rule("  hello   World ")]
    if any(rule(probe) != probe or "  " in probe for probe in probes):
        problems.append("not stable: a second pass changes the text")
    for problem in problems:
        yield "blocked", f"{name}: {problem}"
    if not problems:
        probed = "maqaf and vowel points" if name.startswith("hebrew") else "letters and spaces"
        yield "ok", f"{name}: punctuation, {probed} come out as they should"


def check_sources(patient: Patient) -> Lines:
    """Local sources are there, their audio has a decoder, and their text is in the language of the round."""
    for index, source in enumerate(patient.spec.data.sources):
        if source.hub:
            yield "note", f"{source.name}: {source.hub} is read by the export; not looked at now"
            continue
        try:
            found = first_rows(source, patient.data_root, f"data.sources[{index}]")
        except UserError as error:
            yield "blocked", str(error)
            continue
        yield from judge_formats(source.name, [head for row in found if (head := encoded(row))])
        if language := patient.spec.model.language:
            yield from judge_language(source.name, language, [row.text for row in found])


def first_rows(source: Source, data_root: Path, field: str, most: int = LOOKED_AT) -> list[Row]:
    """Some rows of a local source, from all of its shards. UserError as the export would raise it."""
    found = shards(source, locate(source, data_root, field))
    each = max(1, most // len(found))
    return [row for shard in found for row in islice(rows(shard), each)]


def encoded(row: Row) -> bytes | None:
    """The audio of a row as stored; None when there is none."""
    if isinstance(row.data, Path):
        return row.data.read_bytes() if row.data.is_file() else None
    return row.data


def judge_formats(name: str, clips: Sequence[bytes]) -> Lines:
    """Formats without a decoder block, by name; single broken clips are the export's to drop and count."""
    formats: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for data in clips:
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                formats[str(file.format).lower()] += 1
        except (soundfile.LibsndfileError, RuntimeError):
            kind = foreign_format(data)
            (missing if kind else formats)[kind or f"broken {suffix_of(data)}"] += 1
    for kind, count in missing.items():
        line = f"missing codec: no decoder for {kind} ({count} of {len(clips)} looked at)"
        yield "blocked", f"{name}: {line}; convert it to flac, ogg or mp3 first"
    if not missing:
        yield "ok", f"{name}: " + (", ".join(f"{kind} {count}" for kind, count in formats.most_common()) or "no audio")


def judge_language(name: str, language: str, texts: Iterable[str]) -> Lines:
    """The letters of the text are those of the language of the round."""
    script = SCRIPTS.get(language)
    letters = [char for text in texts for char in text if char.isalpha()]
    if script is None or not letters:
        yield "note", f"{name}: the letters of {language} are not known here, so the text is not checked"
        return
    share = sum(bool(re.match(script, char)) for char in letters) / len(letters)
    if share < 0.5:
        line = f"unsupported language: the round says {language}, but {1 - share:.0%} of the letters are others"
        yield "blocked", f"{name}: {line}; set model.language, or take the right source"
    else:
        yield "ok", f"{name}: {share:.0%} of the letters are {language}"


def check_language(patient: Patient) -> Lines:
    """What asks for the language by name, and whether it knows it."""
    model = patient.spec.model
    if not isinstance(model, Qwen3AsrModel):
        yield "ok", f"{model.language or 'not said'}; a CTC model is not asked for one, it spells what it hears"
        return
    language = model.language
    if language in QWEN_LANGUAGES:
        yield "ok", f"{language} is one of the {len(QWEN_LANGUAGES)} languages that qwen-asr takes by name"
        return
    refused = f'unsupported language: qwen-asr\'s transcribe(language="{language}") raises'
    yield "note", f"{refused}; the model trains and is asked without the argument, as `caspi serve` and vLLM do"
