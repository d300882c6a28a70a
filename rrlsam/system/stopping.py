"""Being stopped: SIGTERM as an exception, pieces of work that end before a signal is heeded, and threads that do not.

Python cannot break a thread off, and must not take itself down under one that runs in a library: there the process
would crash. So threads that are left are waited for when Python ends, unless the process is then ended at once.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType

_LEFT: set[threading.Thread] = set()
"""Threads that were not waited for to their end."""


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


def wait_for(threads: Iterable[threading.Thread], *, patience_s: float | None) -> None:
    """Wait for daemon threads to end; after `patience_s` (None: never) they are left until Python ends."""
    started = [thread for thread in threads if thread.is_alive()]
    _LEFT.difference_update([thread for thread in _LEFT if not thread.is_alive()])
    _LEFT.update(started)
    atexit.unregister(_wait_for_left)
    atexit.register(_wait_for_left)
    end = None if patience_s is None else time.monotonic() + patience_s
    for thread in started:
        thread.join(None if end is None else max(0.0, end - time.monotonic()))


def end_at_once(exit_code: int) -> None:
    """When Python ends, do not wait for threads that were left: what they write is not seen before it is whole."""
    if any(thread.is_alive() for thread in _LEFT):
        atexit.register(_end, exit_code)


def _wait_for_left() -> None:
    for thread in _LEFT:
        thread.join()


def _end(exit_code: int) -> None:
    if any(thread.is_alive() for thread in _LEFT):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it any more
                stream.flush()
        os._exit(exit_code)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
