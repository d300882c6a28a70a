"""Folders that appear whole or not at all."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from rrlsam.system.files import refusal_told


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the final one; on success it takes its place, on failure it is removed.

    A folder that is there already stays until then. Raises ResourceError when the disk refuses.
    """
    mark = secrets.token_hex(4)
    made = [parent for parent in folder.parents if not parent.exists()]
    staging, old = (folder.parent / f".tmp-{what}-{mark}" for what in ("new", "replaced"))
    try:
        with refusal_told(folder, staging):
            staging.mkdir(parents=True)
            yield staging
            if folder.exists():
                folder.rename(old)
            staging.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (staging, old):
            shutil.rmtree(rest, ignore_errors=True)
        for parent in made if not folder.exists() else ():
            with contextlib.suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
