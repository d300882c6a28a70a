"""One writer at a time: a lock file that names its holder, held by the kernel and so gone with its process."""

import contextlib
import datetime
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.system.jsonio import from_json, record, to_json

LOCK = ".lock"
_SECONDS_BETWEEN_TRIES = 0.2
_TRIES_TO_READ = 20
_TRIES_TO_OPEN = 20
_log = logging.getLogger(__name__)


@record
class Holder:
    """Who writes."""

    host: str
    pid: int
    since: str
    """Local time, ISO 8601."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def sole_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Make the folder and be the only one who writes there; readers are not hindered.

    ResourceError names the holder if there is another, unless `wait` is set, and also tells a folder that cannot be
    written. A killed holder's lock is taken over. Folders that were made here and stay empty are removed again.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        descriptor = _acquire(path, wait)
        try:
            _sign(descriptor, path)
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock goes, so that nobody else's file is removed
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for empty in made:
                empty.rmdir()


def _acquire(path: Path, wait: bool) -> int:
    """A locked descriptor of the lock file that lies there now."""
    told = False
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _require_ours(descriptor, path)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            if not wait:
                raise ResourceError(f"{path.parent}: is being written by {holder}; wait for it or stop it") from None
            if not told:
                _log.info("%s: is being written by %s; waiting for it", path.parent, holder)
            told = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        except OSError as error:
            os.close(descriptor)
            raise ResourceError(f"{path}: cannot be locked ({error.strerror}); choose another file system") from error
        except BaseException:
            os.close(descriptor)
            raise
        else:
            if _lies_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # its holder removed it between our opening and locking it


def _open(path: Path) -> int:
    """Open the lock file; another writer may remove the folder, left empty, while this one makes it."""
    for attempt in range(_TRIES_TO_OPEN):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            # gone when the file was to be made, or when `mkdir`, told that it exists, looked whether it is a folder
            gone = isinstance(error, FileNotFoundError | FileExistsError)
            if not gone or attempt == _TRIES_TO_OPEN - 1:
                raise _unwritable(path, error) from error
    raise AssertionError


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path.parent}: cannot be written ({error.strerror}); free or choose a folder")


def _lies_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _require_ours(descriptor: int, path: Path) -> None:
    """Take over a dead holder's lock. On another machine a holder may live although the lock could be had."""
    left = _read(descriptor)
    if left is None:
        return
    if left.host != socket.gethostname():
        raise ResourceError(f"{path}: was left by {left}; delete this file if that process no longer runs")
    _log.warning("%s: %s is dead, its lock is taken over", path.parent, left)


def _sign(descriptor: int, path: Path) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = to_json(Holder(host=socket.gethostname(), pid=os.getpid(), since=now)).encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError as error:
        raise _unwritable(path, error) from error


def _holder(descriptor: int) -> str:
    """Who holds the lock; a holder signs in the moment after it got it."""
    for _ in range(_TRIES_TO_READ):
        holder = _read(descriptor)
        if holder is not None:
            return str(holder)
        time.sleep(0.01)
    return "another process"


def _read(descriptor: int) -> Holder | None:
    try:
        return from_json(Holder, os.pread(descriptor, 4096, 0), source=LOCK)
    except BadInputError:
        return None
