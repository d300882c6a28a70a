"""Being stopped: SIGTERM as an exception, and pieces of work that end before a signal is heeded."""

import contextlib
import signal
import threading
from collections.abc import Iterator
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


class Held:
    """Signals that wait; calling it tells whether one came."""

    def __init__(self) -> None:
        known = (signal.SIG_DFL, signal.default_int_handler, _terminate)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._handlers = {n: handler for n, handler in handlers.items() if handler in known and _in_main_thread()}
        self._came: list[int] = []

    def __call__(self) -> bool:
        """Whether a signal came."""
        return bool(self._came)

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Inside, signals do at once what they would have done, one that came before at the beginning."""
        try:
            self.release()
            self.deliver()
            yield
        finally:
            self.hold()

    def hold(self) -> None:
        """Let signals wait from now on."""
        for number in self._handlers:
            signal.signal(number, lambda number, frame: self._came.append(number))

    def release(self) -> None:
        """Let signals wait no longer."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Do what the first signal that came would have done."""
        if self._came:
            signal.raise_signal(self._came[0])


@contextlib.contextmanager
def held_back() -> Iterator[Held]:
    """SIGINT and SIGTERM wait until the end of the block, or until they are let through.

    Then the first of them does what it would have done. Handlers of somebody else's, and signals that are ignored,
    stay as they are; outside the main thread, which alone gets signals, nothing is held back.
    """
    held = Held()
    try:
        held.hold()
        yield held
    finally:
        held.release()
    held.deliver()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
