"""Train and dev without leakage: no recording, speaker or text stands on both sides.

Utterances that share a recording or a speaker form one group (a connected component), which goes to one side as a
whole. Groups are drawn by a hash of seed and key, so the order of rows does not matter and added data hardly moves
what was there. A text that still stands on both sides, said by different people, is left out on one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caspi.errors import UserError

Keys = npt.NDArray[np.uint64]
MISSING = 0
TRAIN, EVAL, SHARED_TEXT = 0, 1, 2
"""Where an utterance goes; SHARED_TEXT is left out."""


def key_of(value: str | None) -> int:
    """64 bits that stand for a label; MISSING for none."""
    if value is None:
        return MISSING
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") or 1


def text_key(text: str) -> int:
    """Texts that differ in case, punctuation or spaces only are one text."""
    return key_of("".join(filter(str.isalnum, text.casefold())) or text)


@dataclass(frozen=True, slots=True)
class Labels:
    """Keys of all utterances, one array each: 32 bytes an utterance."""

    recording: Keys
    speaker: Keys
    text: Keys
    identity: Keys


def assign(labels: Labels, by: Collection[str], share: float, seed: int) -> npt.NDArray[np.int8]:
    """TRAIN, EVAL or SHARED_TEXT for each utterance. UserError when no fair split exists."""
    total = len(labels.identity)
    if total < 2:
        raise UserError(f"data.split: {total} utterances can't be split into train and dev; add data")
    groups, keys = _groups(labels, by)
    in_eval = _draw(np.bincount(groups), _mixed(keys, seed), share, by)[groups]
    side = np.where(in_eval, EVAL, TRAIN).astype(np.int8)
    if "text" in by:
        _part_texts(side, labels.text)
        if not (side == EVAL).any():
            raise UserError(
                "data.split: each text of dev also stands in train, so dev would be empty; "
                'take "text" out of data.split.by, or add utterances with other texts'
            )
    return side


def _groups(labels: Labels, by: Collection[str]) -> tuple[npt.NDArray[np.int64], Keys]:
    """(group of each utterance, key of each group). A group's key is the least of its speakers, or recordings."""
    own = labels.text if "text" in by else labels.identity
    speaker = labels.speaker if "speaker" in by else np.zeros_like(own)
    recording = labels.recording if "recording" in by else np.zeros_like(own)
    alone = (speaker == MISSING) & (recording == MISSING)
    # One node for each distinct label; kinds don't meet: a speaker called "7" is no recording called "7".
    first = np.where(speaker != MISSING, speaker, np.where(recording != MISSING, recording, own))
    kind = np.where(speaker != MISSING, 0, np.where(alone, 2, 1)).astype(np.uint64)
    nodes, node = np.unique(np.stack([kind, first]), axis=1, return_inverse=True)
    node = node.reshape(-1)
    roots, group_of_node = np.unique(_joined(node, len(nodes[0]), recording), return_inverse=True)
    # The root is the least node of its group, and nodes are sorted by kind, then key.
    return group_of_node.reshape(-1)[node], nodes[1][roots]


def _joined(node: npt.NDArray[np.int64], nodes: int, recording: Keys) -> npt.NDArray[np.int64]:
    """The root of each node when nodes that share a recording are one (union-find)."""
    parent = list(range(nodes))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    known = recording != MISSING
    pairs = np.unique(np.stack([recording[known], node[known].astype(np.uint64)]), axis=1)
    for index in np.flatnonzero(pairs[0, 1:] == pairs[0, :-1]).tolist():
        one, other = root(int(pairs[1, index])), root(int(pairs[1, index + 1]))
        parent[max(one, other)] = min(one, other)
    return np.array([root(at) for at in range(nodes)], dtype=np.int64)


def _draw(sizes: npt.NDArray[np.int64], order: Keys, share: float, by: Collection[str]) -> npt.NDArray[np.bool_]:
    """Which groups are dev: in the order of their hashes, each that brings dev closer to its share."""
    total = int(sizes.sum())
    target = share * total
    chosen = np.zeros(len(sizes), dtype=bool)
    got = 0
    for group in np.argsort(order, kind="stable").tolist():
        size = int(sizes[group])
        if abs(got + size - target) <= abs(got - target) and got + size < total:
            chosen[group] = True
            got += size
    if not got and len(sizes) > 1:  # so few utterances that one is already more than the share
        smallest = min(range(len(sizes)), key=lambda group: (sizes[group], order[group]))
        chosen[smallest], got = True, int(sizes[smallest])
    if not target / 2 <= got <= max(2 * target, 1):
        keys = " and ".join(key for key in ("recording", "speaker", "text") if key in by)
        raise UserError(
            f"data.split: one group that shares {keys} holds {sizes.max() / total:.0%} of the utterances, so dev would "
            f"be {got / total:.1%} instead of {share:.1%}; take a key out of data.split.by, or change data.split.eval"
        )
    return chosen


def _part_texts(side: npt.NDArray[np.int8], text: Keys) -> None:
    """Leave out each text that stands on both sides where it occurs less often (in train when equal)."""
    _, which = np.unique(text, return_inverse=True)
    which = which.reshape(-1)
    train = np.bincount(which[side == TRAIN], minlength=which.max() + 1)
    dev = np.bincount(which[side == EVAL], minlength=which.max() + 1)
    loser = np.where(train > dev, EVAL, TRAIN)
    both = (train > 0) & (dev > 0)
    side[both[which] & (side == loser[which])] = SHARED_TEXT


def _mixed(keys: Keys, seed: int) -> Keys:
    """splitmix64 of key and seed (Steele, Lea, Flood 2014): an order by chance that is the same everywhere."""
    with np.errstate(over="ignore"):
        z = keys ^ (np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
