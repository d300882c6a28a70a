"""Where results may go: never over a scan or a label, never among those of a raw data set. Imports nothing heavy."""

from collections.abc import Iterable
from pathlib import Path

from rrlsam.errors import UsageError
from rrlsam.system.files import real


def require_safe_folder(folder: Path, option: str = "-o", *, scans: Path | None = None) -> None:
    """UsageError if a folder belongs to a raw data set or is that of the scans, whose results would pass for scans."""
    if _is_raw(folder) or _is_raw(real(folder)):
        raise UsageError(f"{option} {folder}: belongs to a raw data set; results need a folder of their own")
    if scans is not None and real(folder) == real(scans):
        raise UsageError(f"{option} {folder}: is the folder of the scans; give results one of their own")


def require_safe_file(
    path: Path | None, inputs: Iterable[Path | None], option: str = "-o", *, overwrite: bool = True
) -> None:
    """UsageError if a result would take the place of an input, or of any file unless `overwrite` says so."""
    if path is None:
        return
    require_safe_folder(path.parent, option)
    if any(real(path) == real(given) for given in inputs if given is not None):
        raise UsageError(f"{option} {path}: would replace what is read; give another name")
    if path.exists() and not overwrite:
        raise UsageError(f"{option} {path}: exists already; give --overwrite to replace it, or another name")


def _is_raw(folder: Path) -> bool:
    return (folder / "imagesTr").is_dir() or (
        folder.absolute().name.startswith(("images", "labels"))
        and (folder.absolute().parent / "dataset.json").is_file()
    )
