"""Where results may go: never over a scan or a label, never among those of a raw data set. Imports nothing heavy."""

import re
from collections.abc import Iterable
from pathlib import Path

from rrlsam.errors import UsageError

_REGISTERED = r"(Inverse)?Warped(Labels)?(_\d{4})?\.nii\.gz|1(Inverse)?Warp\.nii\.gz"
"""How images end that a registration writes for a case."""


def require_safe_folder(folder: Path, option: str = "-o") -> None:
    """UsageError if a folder belongs to a raw data set."""
    if _is_raw(folder):
        raise UsageError(f"{option} {folder}: belongs to a raw data set; results need a folder of their own")


def require_safe_file(
    path: Path | None, inputs: Iterable[Path | None], option: str = "-o", *, overwrite: bool = True
) -> None:
    """UsageError if a result would take the place of an input, or of any file unless `overwrite` says so."""
    if path is None:
        return
    require_safe_folder(path.parent, option)
    if any(path.resolve() == given.resolve() for given in inputs if given is not None):
        raise UsageError(f"{option} {path}: would replace what is read; give another name")
    if path.exists() and not overwrite:
        raise UsageError(f"{option} {path}: exists already; give --overwrite to replace it, or another name")


def require_safe_registration(folder: Path, cases: Iterable[str], inputs: Iterable[Path | None]) -> None:
    """UsageError if files of a registration to these cases would take the place of what is registered."""
    names = [re.compile(rf"{re.escape(case)}_({_REGISTERED})") for case in cases]
    for path in inputs:
        beside = path is not None and path.resolve().parent == folder.resolve()
        if path is not None and beside and any(name.fullmatch(path.name) for name in names):
            raise UsageError(f"-o {folder}: {path.name} would be replaced; give another folder")


def _is_raw(folder: Path) -> bool:
    return (folder / "imagesTr").is_dir() or (
        folder.absolute().name.startswith(("images", "labels"))
        and (folder.absolute().parent / "dataset.json").is_file()
    )
