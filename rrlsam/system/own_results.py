"""Results take the place of earlier ones of ours; what somebody else made or changed is never lost.

FOLDER/.rrlsam/own/NAME.sha256     of every result, as it was written
FOLDER/.rrlsam/new-WHAT/           results that are being written
FOLDER/.rrlsam/replaced/NAME       what was there and was not, or was no longer, as we wrote it
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rrlsam.errors import listed
from rrlsam.system.files import atomic_write, free_name, refusal_told, sha256

HIDDEN = ".rrlsam"
REPLACED = Path(HIDDEN) / "replaced"
_OWN = Path(HIDDEN) / "own"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def own_results(folder: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder; on success all files below it take their places in `folder`, on failure none does.

    Only who alone writes `what` may call it. ResourceError when the folder or the disk refuses.
    """
    new = folder / HIDDEN / f"new-{what}"
    with refusal_told(folder, new):
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir(parents=True)
        try:
            yield new
            _take_places(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def has_own_results(folder: Path) -> bool:
    """Whether any result of ours was ever written to a folder."""
    return (folder / _OWN).is_dir()


def _take_places(new: Path, folder: Path) -> None:
    replaced: list[str] = []
    try:
        for path in sorted(path for path in new.rglob("*") if path.is_file()):
            name = path.relative_to(new)
            mark = folder / _OWN / f"{name}.sha256"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (folder / name).is_file() and not _is_as_written(folder / name, mark) and _set_aside(name, folder):
                replaced.append(str(name))
            content = sha256(path)
            os.replace(path, folder / name)
            with atomic_write(mark) as temporary:
                temporary.write_text(content)
    finally:
        if replaced:
            what = "%s: what was there and is no result of ours, or was changed since, is now in %s: %s"
            _log.warning(what, folder, folder / REPLACED, listed(replaced))


def _is_as_written(path: Path, mark: Path) -> bool:
    """Whether a file is one of ours; one that cannot be read is not."""
    try:
        return mark.read_text() == sha256(path)
    except (OSError, UnicodeDecodeError):
        return False


def _set_aside(name: Path, folder: Path) -> bool:
    """Move a file away; False if another process was faster."""
    target = folder / REPLACED / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        (folder / name).rename(free_name(target))
    except FileNotFoundError:
        return False
    return True
