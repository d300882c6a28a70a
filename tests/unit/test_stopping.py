"""What happens when a command is asked to stop."""

import argparse
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from rrlsam.cli.common import make_parser, run
from rrlsam.system.stopping import Terminated, held_back, terminable


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Whoever runs the tests may ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int) -> Callable[[argparse.Namespace], int]:
    def work(arguments: argparse.Namespace) -> int:
        signal.raise_signal(number)
        return 0

    return work


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_command_says_so_in_one_line(capsys, number, code, word):
    assert run(send(number), make_parser("rrlsam_x", ""), []) == code
    assert capsys.readouterr().err == f"rrlsam_x: {word}\n"


def test_after_a_command_sigterm_is_as_before():
    run(lambda arguments: 0, make_parser("rrlsam_x", ""), [])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_a_signal_that_is_held_back_comes_after_the_work(number, error):
    done = []

    def work() -> None:
        with terminable(), held_back() as stop_asked:
            done.append(stop_asked())
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append(stop_asked())

    with pytest.raises(error):
        work()
    assert done == [False, True]


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_that_is_let_through_breaks_the_work_off_at_once(before):
    done = []

    def work() -> None:
        with terminable(), held_back() as held:
            if before:
                signal.raise_signal(signal.SIGTERM)
            with held.let_through():
                done.append("began")
                signal.raise_signal(signal.SIGTERM)
                done.append("ended")

    with pytest.raises(Terminated):
        work()
    assert done == ([] if before else ["began"])


def test_after_signals_were_let_through_they_wait_again():
    done = []

    def work() -> None:
        with terminable(), held_back() as held:
            with held.let_through():
                pass
            signal.raise_signal(signal.SIGINT)
            done.append(held())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [True]


def test_an_error_of_the_work_is_not_hidden_by_a_signal():
    def work() -> None:
        with terminable(), held_back():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        work()


def test_without_a_signal_nothing_happens_and_the_handlers_return():
    with held_back() as stop_asked:
        pass
    assert not stop_asked()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_somebody_else_is_left_alone():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with terminable(), held_back() as stop_asked:
            signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM]
            assert not stop_asked()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_held_back():
    answers = []

    def work() -> None:
        with terminable(), held_back() as stop_asked:
            answers.append(stop_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
