"""The log file of a training: every line that the commands show, and the whole story of an error."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path


class _LogFile(logging.FileHandler):
    """A log that tells nobody that its disk is full: the next checkpoint will."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the line out."""


@contextlib.contextmanager
def training_log(path: Path) -> Iterator[None]:
    """Write the package's log to a file too; an error inside is written with its traceback, and raised."""
    handler, logger = _LogFile(path, encoding="utf-8"), logging.getLogger("rrlsam")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        handler.handle(logging.LogRecord("rrlsam", logging.ERROR, "", 0, "%s", (error,), sys.exc_info()))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
