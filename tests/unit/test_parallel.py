"""Work in threads that is stopped: what is waited for, and what is left."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rrlsam.system import parallel, stopping
from rrlsam.system.parallel import attempt_each
from rrlsam.system.progress import silent

COMMAND = """
import signal, sys, time
from rrlsam.cli.common import make_parser, run
from rrlsam.system import parallel
from rrlsam.system.progress import silent

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
parallel.PATIENCE_S = 0.2

def slow(item):
    print("began\\n", end="", flush=True)  # in one piece: several threads print
    time.sleep(120)

def work(arguments):
    parallel.attempt_each(slow, {"a": 1, "b": 2, "c": 3}, "Work", workers=2, progress=silent)

sys.exit(run(work, make_parser("rrlsam_x", ""), []))
"""


@pytest.fixture(autouse=True)
def _usual_handler() -> Iterator[None]:
    """Whoever runs the tests may ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Gated:
    """Work that presses Ctrl-C as soon as its first item is begun, and ends none before the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began: list[int] = []
        self.ended: list[int] = []

    def __call__(self, item: int) -> None:
        self.began.append(item)
        if len(self.began) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        self.gate.wait(60)
        self.ended.append(item)


@pytest.fixture
def gated() -> Iterator[Gated]:
    work = Gated()
    yield work
    work.gate.set()
    for thread in stopping._LEFT:
        thread.join()


def stopped(work: Gated) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt_each(work, {str(i): i for i in range(50)}, "Work", workers=1, progress=silent)


def test_what_is_being_worked_on_may_end_within_the_patience(gated):
    threading.Timer(0.1, gated.gate.set).start()
    stopped(gated)
    assert gated.ended == gated.began == [0]


def test_what_takes_longer_is_left(gated, monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.1)
    stopped(gated)
    assert (gated.began, gated.ended) == ([0], [])


def test_nothing_is_begun_after_the_stop(gated, monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.1)
    stopped(gated)
    gated.gate.set()
    for thread in stopping._LEFT:
        thread.join()
    assert gated.ended == gated.began == [0]


def test_an_error_waits_for_what_is_being_worked_on():
    ended = []

    def work(item: int) -> None:
        if item:
            raise ZeroDivisionError("broken")
        time.sleep(0.3)
        ended.append(item)

    with pytest.raises(ZeroDivisionError):
        attempt_each(work, {"a": 0, "b": 1}, "Work", workers=2, progress=silent)
    assert ended == [0]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_command_does_not_wait_for_threads_that_take_long(number, code, word):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"rrlsam_x: {word}\n")
