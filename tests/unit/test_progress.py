"""How long work tells how far it is, in a log file."""

import io
import re

import pytest
from rich.console import Console

from rrlsam.system import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], seconds_each: list[float], total: int) -> list[str]:
    """What is said of items that take so long."""
    told = io.StringIO()
    with progress._lines(Console(file=told, width=200))("Training", total) as advance:
        for seconds in seconds_each:
            clock[0] += seconds
            advance()
    return told.getvalue().splitlines()


def seconds_left(line: str) -> float:
    found = re.search(r"about (\d+) s left", line)
    assert found
    return float(found[1])


def test_time_left_is_told_now_and_then(clock):
    told = lines(clock, [5.0] * 9, 9)
    assert told == [
        "Training: 3 of 9, about 30 s left",
        "Training: 6 of 9, about 15 s left",
        "Training: 9 of 9 in 45 s",
    ]


def test_what_was_done_before_is_soon_forgotten(clock):
    """A continued run counts what it finds at once; the time left is that of what is still to do."""
    told = lines(clock, [0.0] * 500 + [5.0] * 50, 1000)
    assert seconds_left(told[0]) < 100
    assert seconds_left(told[10]) == 5.0 * (1000 - 533)
