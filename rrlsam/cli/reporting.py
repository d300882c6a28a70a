"""What commands show while they work: log lines and progress bars."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rrlsam.system.progress import Progress


def start_logging() -> None:
    """Send the package's log to stderr, one plain line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("rrlsam")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def progress_of(arguments: argparse.Namespace) -> Progress:
    """A progress bar unless it was switched off."""
    from rrlsam.system.progress import rich_progress, silent

    return silent if arguments.disable_progress_bar else rich_progress()


def atlas_names(text: str | None) -> tuple[str, ...]:
    """Names of "CASE[,CASE]"."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
