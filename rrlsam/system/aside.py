"""Earlier results of a folder lie aside until new ones stand, and come back if none ever do.

FOLDER/.earlier/     what lay in FOLDER
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

ASIDE = ".earlier"


@contextlib.contextmanager
def earlier_aside(folder: Path, *, until: str, stays: str) -> Iterator[None]:
    """Put all in a folder aside but the file `stays`; at the end `settle_earlier` decides what becomes of it."""
    aside = folder / ASIDE
    aside.mkdir()
    # `until` goes first and comes back last: wherever a process is killed, it tells which results are whole
    for path in sorted(_content(folder, stays), key=lambda path: path.name != until):
        path.rename(aside / path.name)
    try:
        yield
    finally:
        settle_earlier(folder, until=until, stays=stays)


def settle_earlier(folder: Path, *, until: str, stays: str) -> None:
    """Remove what lies aside if the new results have the file `until`; else it replaces them. Also after a crash."""
    aside = folder / ASIDE
    if not aside.is_dir():
        return
    if not (folder / until).exists():
        earlier = sorted(aside.iterdir(), key=lambda path: path.name == until)
        for path in earlier:
            _remove(folder / path.name)
            path.rename(folder / path.name)
    shutil.rmtree(aside)


def _content(folder: Path, stays: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (ASIDE, stays)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
