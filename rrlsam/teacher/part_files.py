"""Parts of a file that is being downloaded: one a process, locked while it works, gone on with when it was killed."""

import fcntl
import io
import os
import secrets
from pathlib import Path


def open_part(target: Path) -> tuple[Path, io.FileIO]:
    """A part that nobody works on any more, the longest; else a new one of this process alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for part in sorted(_parts(target), key=_size, reverse=True):
        stream = _adopt(part)
        if stream is not None:
            return part, stream
    while True:
        part = target.parent / f".part-{os.getpid()}-{secrets.token_hex(4)}-{target.name}"
        io.FileIO(part, "x").close()
        stream = _adopt(part)
        if stream is not None:  # else another process was faster: it has taken the part for one left behind
            return part, stream


def _adopt(part: Path) -> io.FileIO | None:
    """Open a part if no other process holds it and it still has this name."""
    try:
        stream = io.FileIO(part, "r+")
    except OSError:
        return None
    if _lock(stream) and part.exists() and os.path.samestat(os.fstat(stream.fileno()), part.stat()):
        return stream
    stream.close()
    return None


def _lock(stream: io.FileIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_left_parts(target: Path) -> None:
    """Remove what killed processes left, now that the file is there."""
    for part in _parts(target):
        stream = _adopt(part)
        if stream is not None:
            part.unlink(missing_ok=True)
            stream.close()


def _parts(target: Path) -> list[Path]:
    return list(target.parent.glob(f".part-*-{target.name}"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
