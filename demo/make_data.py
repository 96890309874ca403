"""Make the speech of the demo: `python demo/make_data.py`, with espeak-ng 1.51 installed. The result is committed.

Small Hebrew, spoken by espeak-ng from phonemes (it reads no Hebrew), and a crowd's usual faults planted in it on
purpose. faults.json names every one of them, so that tests can tell whether the export and the audit find them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from speech import ESPEAK_RATE, Codec, Samples, Speaker, decode, encode, phone, speak, studio

SEED = 42
HERE = Path(__file__).parent

VOCABULARY = {  # as written: as espeak-ng says it, as written with niqqud
    "שלום": ("Sal'om", "שָׁלוֹם"),
    "תודה": ("tod'a", "תּוֹדָה"),
    "בוקר": ("b'okeR", "בּוֹקֶר"),
    "טוב": ("t'ov", "טוֹב"),
    "אבא": ("?'aba", "אַבָּא"),
    "אמא": ("?'ima", "אִמָּא"),
    "ילד": ("j'eled", "יֶלֶד"),
    "רוצה": ("Rots'e", "רוֹצֶה"),
    "מים": ("m'ajim", "מַיִם"),
    "תפוח": ("tap'uaX", "תַּפּוּחַ"),
    "כלב": ("k'elev", "כֶּלֶב"),
    "חתול": ("Xat'ul", "חָתוּל"),
    "ספר": ("s'efeR", "סֵפֶר"),
    "בית": ("b'ejt", "בֵּית"),  # only before ספר: a school
    "ת״א": ("telav'iv", "ת״א"),  # Tel Aviv
}
PEOPLE = ["אבא", "אמא", "ילד", "כלב", "חתול"]
THINGS = ["מים", "תפוח", "ספר", "בית ספר", "כלב", "חתול", "ת״א"]
PHRASES = {  # what is said, and how often
    ("שלום", "תודה"): 4,
    ("בוקר", "טוב"): 2,
    ("בוקר טוב",): 4,
    tuple(PEOPLE): 3,
    tuple(THINGS): 4,
    tuple(f"{who} רוצה" for who in PEOPLE): 3,
    tuple(f"רוצה {thing}" for thing in THINGS): 4,
    tuple(f"{which} טוב" for which in (*PEOPLE, "ספר", "תפוח")): 2,
}

CROWD_VOICES = ["m1", "m2", "m3", "m5", "m6", "m7", "f1", "f2", "f4"]
STUDIO_VOICES = ["m8", "f5", "Andy", "Annie", "Alicia", "Michael", "linda", "max"]
UNSEEN_VOICES = ["m4", "f3"]

MP3, VORBIS, OPUS, FLAC = ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")
CODECS = {  # how common each is
    Codec(".mp3", *MP3, 8_000, 0.9): 20,
    Codec(".mp3", *MP3, 16_000, 0.95): 18,
    Codec(".mp3", *MP3, 22_050, 0.95): 8,
    Codec(".mp3", *MP3, 44_100, 0.95): 2,
    Codec(".ogg", *VORBIS, 8_000, 1.0): 10,
    Codec(".ogg", *VORBIS, 22_050, 1.0): 3,
    Codec(".opus", *OPUS, 16_000, 0.96): 22,
    Codec(".opus", *OPUS, 48_000, 0.96): 14,
    Codec(".flac", *FLAC, 8_000): 1.2,
    Codec(".wav", "WAV", "PCM_16", 8_000): 0.5,
}
LOSSLESS = Codec(".flac", *FLAC, 8_000)
LONG = Codec(".ogg", *VORBIS, 8_000, 1.0)

FEATURES = {
    "audio": {"_type": "Audio"},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("text", "speaker", "recording", "domain")},
}
SCHEMA = pa.schema(
    [
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((name, pa.string()) for name in ("text", "speaker", "recording", "domain")),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


@dataclass(frozen=True, slots=True)
class Row:
    """An utterance, and what is wrong with it."""

    words: tuple[str, ...]
    audio: bytes
    suffix: str
    text: str
    speaker: str
    recording: str
    domain: str
    fault: str | None = None
    copy_of: Row | None = None


def main() -> None:
    random = np.random.default_rng(SEED)
    texts = _texts(random, 1_800)
    crowd_speakers = _speakers(CROWD_VOICES, 8, range(30, 71, 5), random)
    studio_speakers = _speakers(STUDIO_VOICES, 4, range(32, 69, 6), random)
    clean_speakers = _speakers(UNSEEN_VOICES, 4, range(33, 69, 5), random)
    phone_speakers = _speakers(UNSEEN_VOICES, 4, range(31, 70, 6), random)

    clean = _record(clean_speakers, "clean", 4, 3, texts, random)
    phone = _record(phone_speakers, "phone", 4, 3, texts, random)
    crowd = _record(crowd_speakers, "crowd", 3, 3, texts, random)
    more = _record(studio_speakers, "studio", 5, 2, texts, random)
    crowd = _plant(crowd, [*clean, *phone], texts, random)

    places = _write(HERE / "crowd", "train", crowd, 3)
    places |= _write(HERE / "studio", "train", more, 2)
    places |= _write(HERE / "test", "clean", clean, 1) | _write(HERE / "test", "phone", phone, 1)
    faults = [
        {"kind": row.fault, "audio": places[id(row)]} | ({"of": places[id(row.copy_of)]} if row.copy_of else {})
        for row in crowd
        if row.fault
    ]
    lines = ",\n".join(json.dumps(fault) for fault in faults)
    (HERE / "faults.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


# What is said


def _texts(random: np.random.Generator, count: int) -> Iterator[tuple[str, ...]]:
    """Two to five words of telegraphic Hebrew, more often few than many, never the same twice."""
    chances, texts = np.array(list(PHRASES.values())) / sum(PHRASES.values()), set()
    while len(texts) < count:
        kinds = random.choice(len(PHRASES), random.integers(1, 5), p=chances)
        phrases = [choices[random.integers(len(choices))] for choices in (list(PHRASES)[kind] for kind in kinds)]
        words = tuple(" ".join(phrases).split())
        wanted = 2 <= len(words) <= 5 and random.random() < (0, 0, 1, 1, 0.05, 0.01)[len(words)]
        if wanted and all(one != next_ for one, next_ in pairwise(words)):
            texts.add(words)
    return iter([sorted(texts)[index] for index in random.permutation(count)])


def _plainly(words: tuple[str, ...]) -> str:
    """As public test sets write it: gershayim are ASCII."""
    return " ".join(words).replace("״", '"')


def _spelt(words: tuple[str, ...], random: np.random.Generator) -> str:
    """As people write it: some with niqqud, a maqaf, odd punctuation or stray marks."""
    pointed = random.random() < 0.08
    text = " ".join(VOCABULARY[word][1] if pointed else word for word in words)
    if random.random() < 0.6:
        text = text.replace("בית ספר", "בית־ספר").replace("בֵּית סֵפֶר", "בֵּית־סֵפֶר")
    if random.random() < 0.15:
        text = text.replace("״", '"')
    if random.random() < 0.12:
        text += ["??", "!!", "..", "?", "!", "."][random.integers(6)]
    if random.random() < 0.04:
        text = [f" {text} ", f"\u200f{text}", text.replace(" ", "  ", 1)][random.integers(3)]
    return text


# Who says it, and how it is recorded


def _speakers(voices: list[str], each: int, pitches: range, random: np.random.Generator) -> list[Speaker]:
    return [
        Speaker(voice, int(pitch))
        for voice in voices
        for pitch in sorted(random.choice(np.array(pitches), each, replace=False))
    ]


def _record(
    speakers: list[Speaker],
    kind: str,
    recordings: int,
    least: int,
    texts: Iterator[tuple[str, ...]],
    random: np.random.Generator,
) -> list[Row]:
    """Each speaker makes so many recordings, each cut into `least` utterances or up to two more; in random order."""
    clean, rows = kind in ("studio", "clean"), []
    sessions = [(speaker, number) for speaker in speakers for number in range(recordings)]
    for index in random.permutation(len(sessions)):
        speaker, number = sessions[index]
        pace = int(random.integers(150, 201))
        for _ in range(int(random.integers(least, least + 3))):
            words = next(texts)
            speech = speak([VOCABULARY[word][0] for word in words], speaker, pace)
            codec = _codec(random)
            rows.append(
                Row(
                    words=words,
                    audio=encode((studio if clean else phone)(speech, random), codec),
                    suffix=codec.suffix,
                    text=_plainly(words) if kind in ("clean", "phone") else _spelt(words, random),
                    speaker=speaker.name,
                    recording=f"{kind}-{speaker.name}-{number + 1}",
                    domain="studio" if clean else "phone",
                )
            )
    return rows


def _codec(random: np.random.Generator, other_than: str = "") -> Codec:
    codecs = {codec: share for codec, share in CODECS.items() if codec.suffix != other_than}
    shares = np.array(list(codecs.values()), float)
    return list(codecs)[random.choice(len(codecs), p=shares / shares.sum())]


# What goes wrong


def _plant(
    rows: list[Row], test: list[Row], texts: Iterator[tuple[str, ...]], random: np.random.Generator
) -> list[Row]:
    """Spoil some utterances, and add some that shouldn't be there."""
    rows = list(rows)
    recordings: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        recordings.setdefault(row.recording, []).append(index)
    order = [list(recordings)[i] for i in random.permutation(len(recordings))]

    # A transcript that slipped by one: a whole recording is wrong.
    for name in order[:6]:
        members = recordings[name]
        for index, other in zip(members, [*members[1:], members[0]], strict=True):
            rows[index] = replace(rows[index], text=rows[other].text.strip(), fault="wrong_text")
    free = [index for name in order[6:] for index in recordings[name]]
    rest = iter(random.permutation(free))
    spoken = {index: decode(rows[index].audio) for index in free}

    def spoil(count: int, fault: str, change: Callable[[Row, Samples], dict], shortest: int = 2) -> None:
        while count:
            index = int(next(rest))
            if len(rows[index].words) >= shortest:
                rows[index] = replace(rows[index], fault=fault, **change(rows[index], spoken[index]))
                count -= 1

    def audio(samples: Samples, codec: Codec) -> dict:
        return {"audio": encode(samples, codec), "suffix": codec.suffix}

    def longer(row: Row, _: Samples) -> dict:
        """Another text of the recording as well, its longest, or all of them."""
        others = [rows[index].text for index in recordings[row.recording] if rows[index] is not row]
        others.sort(key=len, reverse=True)
        return {"text": " ".join([row.text, *others[: 1 if random.random() < 0.5 else None]])}

    def silent(row: Row, samples: Samples) -> dict:
        noise = random.standard_normal(samples.size) * random.choice([0, 1e-4])
        return audio(noise, [LOSSLESS, LONG][random.integers(2)])

    def corrupt(row: Row, samples: Samples) -> dict:
        broken = [row.audio[:20], bytes(64) + row.audio[400:-400], random.bytes(900)][random.integers(3)]
        return {"audio": broken}

    def long(row: Row, samples: Samples) -> dict:
        gap = np.zeros(int(random.uniform(4, 5) * ESPEAK_RATE))
        return audio(np.concatenate([gap, samples, gap, gap]), LONG)

    spoil(14, "text_too_long", longer)
    spoil(8, "text_too_short", lambda row, _: {"text": row.words[-1]}, shortest=4)
    spoil(10, "silent", silent)
    spoil(7, "clipped", lambda _, samples: audio(np.clip(samples / np.std(samples), -1, 1), LOSSLESS))
    spoil(3, "clipped", lambda _, samples: audio(np.clip(samples / np.std(samples), -1, 1), LONG))
    spoil(6, "quiet", lambda _, samples: audio(samples * 0.002 / np.max(np.abs(samples)), LOSSLESS))
    spoil(3, "corrupt", corrupt)
    spoil(2, "empty_text", lambda row, _: {"text": ["", " \u200f?? "][random.integers(2)]})
    spoil(2, "too_short", lambda _, samples: audio(samples[4_000:9_000], LOSSLESS))
    spoil(2, "too_long", long)

    # Copies come under one of a few other names, so that they do not tie all speakers into one group.
    hosts = [rows[int(next(rest))] for _ in range(6)]

    def copy(of: Row, fault: str, host: Row, text: str, reencode: bool) -> Row:
        codec = _codec(random, other_than=of.suffix)
        changed = audio(decode(of.audio) * random.uniform(0.6, 0.9), codec) if reencode else {}
        return replace(
            of,
            fault=fault,
            copy_of=of,
            text=text,
            speaker=host.speaker,
            recording=host.recording,
            domain="phone",
            **changed,
        )

    extra: list[Row] = []
    originals = [rows[int(next(rest))] for _ in range(10)]
    extra += [copy(of, "conflicting_text", of, " ".join(next(texts)), False) for of in originals]
    families = sorted({row.speaker for row in rows} - {host.speaker for host in hosts})[:5]
    originals = [row for row in rows if row.speaker in families and not row.fault and len(row.words) > 2][:15]
    for number, of in enumerate(originals):
        # Every third one was heard otherwise, so that its text alone does not hold it with its original.
        text = " ".join(next(texts)) if number % 3 == 2 else " ".join(of.words)
        reencode = number % 2 == 1
        extra.append(copy(of, "duplicate_reencoded" if reencode else "duplicate", hosts[number % 6], text, reencode))
    for number, index in enumerate(random.permutation(len(test))[:14]):
        of, reencode = test[index], number % 2 == 1
        fault = "leaked_reencoded" if reencode else "leaked"
        extra.append(copy(of, fault, hosts[number % 6], _spelt(of.words, random), reencode))

    for row in extra:  # among the recording that each is said to come from
        at = max(index for index, other in enumerate(rows) if other.recording == row.recording)
        rows.insert(at + 1, row)
    return rows


# Files


def _write(folder: Path, name: str, rows: list[Row], files: int) -> dict[int, str]:
    """Write so many parquet files; returns where each row lies, as a manifest names it."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{name}-*.parquet"):
        old.unlink()
    places: dict[int, str] = {}
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        path = folder / f"{name}-{number:05}-of-{files:05}.parquet"
        columns = [_values(rows[index], index) for index in part]
        table = pa.Table.from_pylist(columns, SCHEMA)
        pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False)
        places |= {id(rows[index]): f"{folder.name}/{path.name}#{row}" for row, index in enumerate(part)}
    return places


def _values(row: Row, index: int) -> dict:
    return {
        "audio": {"bytes": row.audio, "path": f"{row.recording}-{index:04}{row.suffix}"},
        "text": row.text,
        "speaker": row.speaker,
        "recording": row.recording,
        "domain": row.domain,
    }


if __name__ == "__main__":
    main()
