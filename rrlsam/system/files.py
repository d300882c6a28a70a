"""Whole-or-nothing file writing and content hashes."""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePath

from rrlsam.errors import ResourceError

IGNORED_NAMES = (".DS_Store", "Thumbs.db")
CHECKSUM_SIZE = 64
_TEMPORARY = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of writing, even where copying blames the file that it reads."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    The temporary name keeps the file's ending, since writers choose the format by it. Raises
    ResourceError when the folder or the disk refuses.
    """
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{_with_one_ending(path.name)}"
    with refusal_told(path, temporary):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _with_one_ending(name: str) -> str:
    """A name without dots but for its ending: ITK takes x.nii off x.nii.nii.gz and would write another file."""
    ending = "".join(PurePath(name).suffixes[-2 if name.endswith(".gz") else -1 :])
    return name.removesuffix(ending).replace(".", "%2E") + ending


@contextlib.contextmanager
def refusal_told(path: Path, temporary: Path) -> Iterator[None]:
    """An OSError while something is written to a path becomes a ResourceError; one about a file elsewhere stays.

    `temporary`: file or folder beside it that takes its place at last.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL and isinstance(error.filename, str | bytes):
            about, own, target = (Path(os.path.abspath(os.fsdecode(p))) for p in (error.filename, temporary, path))
            if about not in (own, target, *target.parents) and own not in about.parents:
                raise
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); free or choose a folder"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Make a folder if there is none; ResourceError if no file can be made in it."""
    probe = folder / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written ({error.strerror}); free or choose a folder") from error


def require_room(path: Path, n_bytes: int) -> None:
    """OSError if the disk has no room for a new file of so many bytes, or none so large may be made there."""
    with path.open("xb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, n_bytes)
        finally:
            path.unlink()


def free_name(path: Path) -> Path:
    """The path, or where something is there already, NAME_2.ENDING, NAME_3.ENDING and so on beside it."""
    stem, *endings = path.name.split(".")
    others = (path.with_name(".".join([f"{stem}_{number}", *endings])) for number in itertools.count(2))
    return next(place for place in itertools.chain([path], others) if not place.exists())


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder; only for who alone writes there."""
    left_over = re.compile(rf"{re.escape(_TEMPORARY)}\d+-[0-9a-f]{{8}}-.*", re.DOTALL)
    for path in folder.iterdir() if folder.is_dir() else ():
        if left_over.fullmatch(path.name):
            path.unlink(missing_ok=True)


def real(path: Path) -> Path:
    """The path without links; a link that leads to itself, which `Path.resolve` gives up at, stays."""
    return Path(os.path.realpath(path))


def spelt(name: object) -> str:
    """A name in which bytes that are no UTF-8, which no report can hold, are spelt out."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def is_clutter(path: Path) -> bool:
    """Whether a file is an operating system's litter or a left-over temporary file."""
    return path.name.startswith(".") or path.name in IGNORED_NAMES or path.name.endswith(".tmp")


def with_checksum(content: bytes) -> bytes:
    """Content with its SHA-256 behind it, as `CHECKSUM_SIZE` hexadecimal digits."""
    return content + hashlib.sha256(content).hexdigest().encode()


def checksum_fits(whole: bytes) -> bool:
    """Whether what `with_checksum` made is as it was."""
    return hashlib.sha256(memoryview(whole)[:-CHECKSUM_SIZE]).hexdigest().encode() == whole[-CHECKSUM_SIZE:]


def sha256(*paths: Path) -> str:
    """Hexadecimal SHA-256 of the files' contents, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
