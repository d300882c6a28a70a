"""How long work tells how far it is: a bar in a terminal, plain lines in a log file, nothing in a library call."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 15.0
_LINES_LOOKED_AT = 8
"""The time left goes by what was done since: what was done before a continued run, or another stage, is forgotten."""


@runtime_checkable
class Progress(Protocol):
    """`with progress("Reading", 100) as advance: ... advance()`, once a finished item, from any thread."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Begin a piece of work of `total` items."""
        ...


@contextlib.contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


def rich_progress() -> Progress:
    """A bar with the time left on standard error; lines now and then when that is not a terminal."""
    from rich.console import Console

    class Patient(Console):
        """Whose reader may go away, which rich would take for the end of the work."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    console = Patient(stderr=True)
    return _bar(console) if console.is_terminal else _lines(console)


def _bar(console: "Console") -> Progress:
    from rich import progress as rich

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())

    @contextlib.contextmanager
    def show(description: str, total: int) -> Iterator[Callable[[], None]]:
        with rich.Progress(*columns, rich.TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)

    return show


def _lines(console: "Console") -> Progress:
    @contextlib.contextmanager
    def show(description: str, total: int) -> Iterator[Callable[[], None]]:
        began = said = time.monotonic()
        done, marks = 0, deque([(began, 0)], maxlen=_LINES_LOOKED_AT)

        def advance() -> None:
            nonlocal done, said
            done += 1
            now = time.monotonic()
            if now - said >= _SECONDS_BETWEEN_LINES and done < total:
                said = now
                since, before = marks[0]
                left = (now - since) / (done - before) * (total - done)
                marks.append((now, done))
                console.print(f"{description}: {done} of {total}, about {left:.0f} s left", highlight=False)

        yield advance
        console.print(f"{description}: {done} of {total} in {time.monotonic() - began:.0f} s", highlight=False)

    return show
