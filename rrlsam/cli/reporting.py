"""What commands show while they work: log lines and progress bars."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from rrlsam.cli.speaking import printable

if TYPE_CHECKING:
    from rrlsam.system.progress import Progress


class _Plain(logging.Formatter):
    """Messages alone, in which no file's name can steer the terminal."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def start_logging(*, debug: bool = False) -> None:
    """Send the package's log to stderr, one plain line each; `debug`: with the tracebacks of single scans."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logger = logging.getLogger("rrlsam")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it finds, we say


def progress_of(arguments: argparse.Namespace) -> Progress:
    """A progress bar unless it was switched off."""
    from rrlsam.system.progress import rich_progress, silent

    return silent if arguments.disable_progress_bar else rich_progress()
