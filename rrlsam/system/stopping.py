"""Being stopped: SIGTERM as an exception, and pieces of work that end before a signal is heeded."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt, nothing but the command itself should catch it."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated inside, unless somebody else sees to it."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM wait until the end of the block; what is yielded tells whether one came.

    Then the first of them does what it would have done. Handlers of somebody else's, and signals that are ignored,
    stay as they are; outside the main thread, which alone gets signals, nothing is held back.
    """
    came: list[int] = []
    known = (signal.SIG_DFL, signal.default_int_handler, _terminate)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in handlers.items() if handler in known} if _in_main_thread() else {}
    try:
        for number in held:
            signal.signal(number, lambda number, frame: came.append(number))
        yield lambda: bool(came)
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
