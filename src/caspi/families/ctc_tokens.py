"""What a CTC head spells with: the tokenizer of a base, or one learnt from the training text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.families.ctc_backend import backend
from caspi.files import write_json

BLANK = "<pad>"
UNKNOWN = "<unk>"
DELIMITER = "|"
"""What a space between words is written as, in a vocabulary of characters."""

SPARE = 16
"""How many merges there are at least beside the characters, in a vocabulary of byte pairs."""


class Vocabulary:
    """Text to token ids and back, by a tokenizer of `transformers`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.blank: int = tokenizer.pad_token_id
        self.unknown: int | None = tokenizer.unk_token_id
        self._silent = frozenset(tokenizer.all_special_ids)
        self._size = self.size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a label: each token stands for itself. (The tokenizer's own default merges repeated ones, as
        if they were frames: `ll` would come back as `l`.)"""
        text: str = self.tokenizer.decode(list(ids), group_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def hear(self, frames: Sequence[int]) -> tuple[str, str]:
        """(text, raw) of the likeliest token of each frame: repeats are one, blanks part them and go. Raw names
        what has no letter (`<unk>`), the text leaves it out."""
        known = [token if token < self._size else self.unknown for token in frames]  # a head may have spare rows
        ids = [token for token, _ in groupby(known) if token is not None and token != self.blank]
        return self.decode([token for token in ids if token not in self._silent]), self.decode(ids)

    def size(self) -> int:
        """Rows that a head needs. (A tokenizer numbers sentence marks that its vocabulary lacks; no text has them.)"""
        marks = {self.tokenizer.bos_token, self.tokenizer.eos_token}
        highest: int = max(number for token, number in self.tokenizer.get_vocab().items() if token not in marks)
        return highest + 1


def load_vocabulary(folder: Path, model_type: str) -> Vocabulary:
    """The tokenizer of a model folder; UserError when it can't spell for CTC."""
    try:
        tokenizer = backend(model_type).AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the tokenizer does not load ({str(error).splitlines()[0]})") from None
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no pad token, which is the blank of CTC; copy its files again")
    return Vocabulary(tokenizer)


def characters(texts: Iterable[str]) -> list[str]:
    """The vocabulary of a corpus: blank, unknown, the delimiter, and every character of the texts, sorted."""
    found = {character for text in texts for character in text if not character.isspace()}
    return [BLANK, UNKNOWN, DELIMITER, *sorted(found - {DELIMITER})]


def write_characters(folder: Path, tokens: Sequence[str]) -> None:
    """Write the tokenizer of a vocabulary of characters; the blank is 0."""
    named = {"pad_token": BLANK, "unk_token": UNKNOWN, "bos_token": None, "eos_token": None}
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    write_json(
        folder / "tokenizer_config.json",
        {
            **named,
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": DELIMITER,
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(folder / "special_tokens_map.json", {name: token for name, token in named.items() if token})


def write_byte_pairs(folder: Path, texts: Sequence[str], size: int) -> int:
    """Learn `size` pieces of words from the texts and write the tokenizer; the blank comes last.

    Returns the rows of the head, size + 1; more where the texts have so many characters that few pieces would be
    left. What the texts are too small to teach is filled with pieces that no text has: the size is the same for all.
    """
    size = max(size, 1 + len({character for text in texts for character in text}) + SPARE)
    tokenizer = backend("parakeet_ctc").ParakeetTokenizerFast(
        tokenizer_object=_learn(sorted(texts), size),
        unk_token=UNKNOWN,
        pad_token=BLANK,
        clean_up_tokenization_spaces=False,
    )
    assert tokenizer.pad_token_id == size
    tokenizer.save_pretrained(folder)
    return size + 1


def _learn(texts: Sequence[str], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE(unk_token=UNKNOWN))
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[UNKNOWN], show_progress=False)
    learnt.train_from_iterator(texts, trainer)
    vocabulary = learnt.get_vocab()
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    for number in range(len(vocabulary), size):
        vocabulary[f"<unused-{number}>"] = number
    filled = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN))
    filled.pre_tokenizer = pre_tokenizers.Metaspace()
    filled.decoder = decoders.Metaspace()
    return filled
