"""What goes wrong with one scan stays with it."""

import contextlib
import logging
from collections.abc import Iterator

from rrlsam.errors import SHOWN, InternalError, RrlsamError
from rrlsam.system.shortage import shortages_told

_log = logging.getLogger(__name__)


def tell_failure(number: int, name: str, error: RrlsamError) -> None:
    """Tell of the failure with that number, from 0; not of a thousand one by one, since all stand in the report."""
    _log.log(logging.ERROR if number < SHOWN else logging.DEBUG, "%s: %s", name, error)
    if number == SHOWN:
        _log.error("further failures are only listed in the report")


@contextlib.contextmanager
def one_case(name: str) -> Iterator[None]:
    """Work on one of many: shortages are told as such, and an error of ours becomes one that only this case has."""
    try:
        with shortages_told():
            yield
    except (RrlsamError, OSError):
        raise
    except Exception as error:
        _log.debug("%s", name, exc_info=True)
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InternalError(
            f"internal error, {type(error).__name__}: {reason}; run again with --debug and report it"
        ) from error
