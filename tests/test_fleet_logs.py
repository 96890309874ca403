"""Logs that are read again from a whole second: each line once, none lost."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspi.fleet.logs import Cursor

TIMES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from("abc")), max_size=30)


def stamped(lines: list[tuple[int, int, str]]) -> list[str]:
    """As the API gives them: seconds, a fraction whose zeros may be cut off, text."""
    found = []
    for second, fraction, text in sorted(lines, key=lambda line: line[:2]):
        rest = f".{fraction}Z" if fraction else "Z"
        found.append(f"2026-11-21T15:00:0{second}{rest} {text}")
    return found


def served(lines: list[str], cursor: Cursor, until: int) -> Iterator[str]:
    """The API: from the whole second of `sinceTime` on; then the connection breaks, after line number `until`."""
    since = cursor.since.get("sinceTime", "")
    for number, line in enumerate(lines):
        if number >= until:
            return
        if line[:19] >= since[:19]:
            yield line


@given(TIMES, st.integers(0, 2**32))
def test_a_log_read_in_pieces_is_the_log(lines: list[tuple[int, int, str]], seed: int) -> None:
    log, chance, cursor = stamped(lines), random.Random(seed), Cursor()
    got: list[str] = []
    ends = sorted(chance.randint(0, len(log)) for _ in range(4))
    for until in [*ends, len(log)]:
        got += [text for _, text in cursor.new(served(log, cursor, until))]
    assert got == [line.split(" ")[1] for line in log]


@pytest.mark.parametrize("broken", ["no cursor", "whole seconds"])
def test_the_property_finds_the_faults_that_it_is_for(broken: str) -> None:
    """Reading again without a cursor repeats lines; skipping the whole second loses some."""
    log = ["2026-11-21T15:00:01.1Z a", "2026-11-21T15:00:01.2Z b", "2026-11-21T15:00:01.2Z b"]
    cursor = Cursor()
    got = [text for _, text in cursor.new(iter(log[:2]))]
    if broken == "no cursor":
        got += [text for _, text in Cursor().new(iter(log))]
    else:
        got += [text for at, text in Cursor().new(iter(log)) if at[:19] > cursor.at[:19]]
    assert got != ["a", "b", "b"]
    assert [text for _, text in cursor.new(iter(log))] == ["b"], "the third line only"


def test_a_line_without_text() -> None:
    assert list(Cursor().new(iter(["2026-11-21T15:00:01Z "]))) == [("2026-11-21T15:00:01.000000000", "")]
