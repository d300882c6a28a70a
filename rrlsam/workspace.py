"""Where things lie: the three root folders and the names of everything beneath them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import UsageError

OWN_FOLDER = "rrlsam"
"""Our subfolder of every data set's folder, so that nnU-Net's files beside it stay untouched."""

_ROOTS = ("raw", "preprocessed", "results")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The three roots; a root that nobody named raises UsageError when it is used."""

    roots: Mapping[str, Path | None]

    def root(self, which: str) -> Path:
        """One of raw, preprocessed, results."""
        path = self.roots[which]
        if path is None:
            raise UsageError(f"the folder of {which} data is not known; give --{which} FOLDER or set rrlsam_{which}")
        return path

    def preprocessed(self, dataset: str) -> Path:
        """Our folder for a data set's fingerprint, plans and preprocessed scans."""
        return self.root("preprocessed") / dataset / OWN_FOLDER

    def results(self, dataset: str) -> Path:
        """Our folder for a data set's trained models."""
        return self.root("results") / dataset / OWN_FOLDER


def make_workspace(flags: Mapping[str, Path | None], environment: Mapping[str, str] = os.environ) -> Workspace:
    """Roots from flags, else rrlsam_* variables, else nnU-Net's."""
    roots: dict[str, Path | None] = {}
    for which in _ROOTS:
        named = environment.get(f"rrlsam_{which}") or environment.get(f"nnUNet_{which}")
        roots[which] = flags.get(which) or (Path(named) if named else None)
    return Workspace(roots=roots)
