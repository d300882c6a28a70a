"""Fetching SAM's weights: resumed after a cut, tried again, and kept only if they are the official file."""

import contextlib
import http.client
import io
import logging
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rrlsam import __version__
from rrlsam.errors import BadInputError, ResourceError, UnsafeError
from rrlsam.system.files import atomic_write, sha256
from rrlsam.system.progress import Progress, silent
from rrlsam.system.stopping import Terminated
from rrlsam.teacher.part_files import open_part, remove_left_parts
from rrlsam.teacher.sam_releases import SamRelease, by_hand, problem_of

_BLOCK = 1 << 18
_MIB = 1 << 20
_BUSY = (408, 425, 429)
"""Answers after which the same request may succeed, besides all from 500 on."""
_LONGEST_WAIT_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When a transfer is tried again and when it is given up."""

    stall_s: float = 30.0
    """Silence after which a connection counts as dead."""
    attempts: int = 4
    """Failures in a row, without a MiB between them."""
    first_wait_s: float = 1.0
    """Before the second attempt; doubled each time."""


class _Cut(Exception):
    """The transfer stopped for a reason that may pass."""


class _Meter:
    """Turns bytes into the steps of a progress bar, a MiB each; never goes back."""

    def __init__(self, progress: Progress, description: str, stack: contextlib.ExitStack) -> None:
        self._progress, self._description, self._stack = progress, description, stack
        self._advance: Callable[[], None] | None = None
        self._total = self._done = 0

    def begin(self, total_bytes: int) -> None:
        """Show the bar, once."""
        if self._advance is None:
            self._total = max(1, total_bytes // _MIB)
            self._advance = self._stack.enter_context(self._progress(self._description, self._total))

    def reached(self, n_bytes: int) -> None:
        """So much is there."""
        while self._advance is not None and self._done < min(n_bytes // _MIB, self._total):
            self._done += 1
            self._advance()


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Never from HTTPS to anything else; urllib itself refuses what is not HTTP at all."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # pyright: ignore[reportMissingParameterType]
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.HTTPError(newurl, code, "not HTTPS", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(release: SamRelease, folder: Path, progress: Progress = silent, patience: Patience = Patience()) -> Path:
    """Fetch a release into a folder; returns its path.

    What a cut or an interruption left is gone on from, also by a later call; several processes do not disturb each
    other. A file that is not the official one is not kept (BadInputError). ResourceError without network or disk.
    """
    target = folder / release.file
    with contextlib.ExitStack() as stack:
        meter = _Meter(progress, f"Downloading {release.file} (MiB)", stack)
        try:
            part, stream = open_part(target)
        except OSError as error:
            raise _no_disk(folder, error) from error
        stack.callback(stream.close)
        with _kept_if_only_cut(part, stream, release):
            begun = stream.seek(0, os.SEEK_END)
            _fetch(release, stream, patience, meter)
            if begun and sha256(part) != release.sha256:  # what lay there was not the beginning of this file
                stream.truncate(0)
                _fetch(release, stream, patience, meter)
            _check_part(part, release)
            os.fsync(stream.fileno())
            os.replace(part, target)
    remove_left_parts(target)
    return target


def install(source: Path, releases: Iterable[SamRelease], folder: Path) -> Path:
    """Copy a file that somebody fetched by hand into the folder, if it is one of the releases."""
    candidates = tuple(releases)
    if not source.is_file():
        raise ResourceError(f"{source}: no such file; --from needs {' or '.join(r.file for r in candidates)}")
    try:
        found, size = sha256(source), source.stat().st_size
    except OSError as error:
        raise ResourceError(f"{source}: cannot be read ({error.strerror or error}); give another file") from error
    fitting = [release for release in candidates if release.sha256 == found]
    if not fitting:
        expected = " or ".join(f"{release.sha256} ({release.file})" for release in candidates)
        raise BadInputError(
            f"{source}: has {size} bytes and the SHA-256 {found}, expected {expected}; download it again"
        )
    target = folder / fitting[0].file
    if target.exists() and target.samefile(source):
        return target
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
        _check_part(temporary, fitting[0])
    return target


def _check_part(part: Path, release: SamRelease) -> None:
    if problem := problem_of(part, release):
        raise BadInputError(f"{release.url}: what was read {problem}; nothing is kept; {by_hand(release)}")


@contextlib.contextmanager
def _kept_if_only_cut(part: Path, stream: io.FileIO, release: SamRelease) -> Iterator[None]:
    """Remove the part after any failure but one that a later attempt may go on from."""
    resumable = False
    try:
        yield
    except _Cut as cut:
        resumable = True
        raise ResourceError(f"{release.url}: cannot be downloaded ({cut}); {by_hand(release)}") from cut
    except (KeyboardInterrupt, Terminated):
        resumable = True
        raise
    except OSError as error:
        raise _no_disk(part.parent, error) from error
    finally:
        if not resumable or os.fstat(stream.fileno()).st_size == 0:
            part.unlink(missing_ok=True)


def _fetch(release: SamRelease, stream: io.FileIO, patience: Patience, meter: _Meter) -> None:
    """Make the part whole; _Cut when patience is at its end."""
    failures = 0
    while True:
        before = stream.seek(0, os.SEEK_END)
        try:
            return _transfer(release, stream, patience.stall_s, meter)
        except _Cut as cut:
            gained = stream.seek(0, os.SEEK_END) - before
            failures = 1 if gained >= _MIB else failures + 1
            if failures >= patience.attempts:
                raise
            wait = min(patience.first_wait_s * 2 ** (failures - 1), _LONGEST_WAIT_S)
            _log.warning("%s: %s; trying again in %.0f s", release.url, cut, wait)
            time.sleep(wait)


def _transfer(release: SamRelease, stream: io.FileIO, stall_s: float, meter: _Meter) -> None:
    """One request for what is missing."""
    have = stream.seek(0, os.SEEK_END)
    if have == release.size:
        return
    wanted = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(release.url, headers={"User-Agent": f"rrlsam/{__version__}", **wanted})
    with _connect(request, release, stream, stall_s) as response:
        _receive(response, stream, release, meter)


def _connect(
    request: urllib.request.Request, release: SamRelease, stream: io.FileIO, stall_s: float
) -> http.client.HTTPResponse:
    try:
        return urllib.request.build_opener(_SafeRedirects).open(request, timeout=stall_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            stream.truncate(0)
            raise _Cut("the server has no more bytes") from error
        if error.code >= 500 or error.code in _BUSY:
            raise _Cut(f"the server answered {error.code}") from error
        if 300 <= error.code < 400:
            raise UnsafeError(f"{release.url}: leads to {error.url}, which is not safe; {by_hand(release)}") from error
        raise ResourceError(f"{release.url}: the server answered {error.code}; {by_hand(release)}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise ResourceError(f"{release.url}: its certificate is not trusted; {by_hand(release)}") from error
        raise _Cut(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or "no answer") from error


def _receive(response: http.client.HTTPResponse, stream: io.FileIO, release: SamRelease, meter: _Meter) -> None:
    have = stream.seek(0, os.SEEK_END)
    if have and not _continues(response, have):
        stream.seek(0)
        stream.truncate()
        have = 0
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            raise _Cut("the server sent another part than asked for")
    promised = None if response.length is None else have + response.length
    whole = release.size or promised
    if promised is not None and promised != whole:
        raise _wrong_size(release, promised)
    _require_space(stream, (whole or 0) - have)
    meter.begin(whole or 0)
    for block in _blocks(response):
        have += len(block)
        if whole is not None and have > whole:
            raise _wrong_size(release, have)
        _write(stream, block)
        meter.reached(have)
    if whole is not None and have < whole:
        raise _Cut(f"cut after {have} of {whole} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read1(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or "the connection was cut") from error


def _write(stream: io.FileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {have}-")


def _require_space(stream: io.FileIO, missing: int) -> None:
    status = os.fstatvfs(stream.fileno())
    free = status.f_bavail * status.f_frsize
    if missing > free:
        raise OSError(f"{missing / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def _wrong_size(release: SamRelease, size: int) -> BadInputError:
    return BadInputError(
        f"{release.url}: the server sends {size} bytes, the official file has {release.size}; nothing is kept; "
        f"{by_hand(release)}"
    )


def _no_disk(folder: Path, error: OSError) -> ResourceError:
    reason = error.strerror or error
    return ResourceError(f"{folder}: cannot be written ({reason}); free it or name another with rrlsam_cache")
