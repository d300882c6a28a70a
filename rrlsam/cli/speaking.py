"""What is said to whoever listens: readers that go away, disks that are full, letters that a terminal lacks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable


def printable(text: str) -> str:
    """A text whose control characters, such as a file's name may have, are spelt out; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


@runtime_checkable
class _Stream(Protocol):
    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def fileno(self) -> int: ...


class Patient:
    """A stream whose reader may go away, as `head` does, or whose disk is full: what is said then is lost, the work
    goes on. Letters that it does not know are spelt out."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        """Why something was lost that there was a reader for."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with self._losses_noted():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Pass on what waits."""
        with self._losses_noted():
            self._stream.flush()

    @contextlib.contextmanager
    def _losses_noted(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            pass
        except OSError as error:
            self.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def spoken_to(out: Patient | None) -> Iterator[None]:
    """Let the work print although nobody listens any more; None is an output closed from the start."""
    if out is None:
        yield
        return
    stream: Any = out  # has what `print` needs, not all that a text stream has
    with contextlib.redirect_stdout(stream):
        try:
            yield
        finally:
            out.flush()


def settle(stream: _Stream | None) -> None:
    """Flush a stream. If that fails it is led to os.devnull, or Python's own flush at exit would fail again."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
