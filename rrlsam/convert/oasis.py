"""OASIS as Neurite distributes it, and subjects of FreeSurfer: a folder a subject."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rrlsam.convert import label_names
from rrlsam.convert.source import Source, SourceCase
from rrlsam.errors import BadInputError, UsageError
from rrlsam.scans.volume import read_labels
from rrlsam.system.files import is_clutter
from rrlsam.system.jsonio import record

Structures = Literal["paper", "all"]

_log = logging.getLogger(__name__)

IMAGES = ("aligned_norm.nii.gz", "norm.nii.gz", "norm.mgz", "orig.nii.gz", "orig.mgz")
LABELS = ("aligned_seg35.nii.gz", "seg35.nii.gz", "aseg.nii.gz", "aseg.mgz")
_NUMBERINGS: Mapping[str, Mapping[int, str]] = {
    "seg35": label_names.SEG35,
    "seg4": label_names.SEG4,
    "aseg": label_names.ASEG,
}


@record
class OasisOptions:
    """What is to be taken from each subject's folder."""

    structures: Structures = "paper"
    image: str | None = None
    """File name; None: the first of IMAGES that any subject has."""
    labels: str | None = None
    """File name; None: the first of LABELS that any subject has."""


def oasis(folder: Path, options: OasisOptions) -> Source:
    """Understand a folder of subjects; BadInputError if none of them has a scan, or none of them labels."""
    subjects = _subjects(folder)
    image = options.image or _first_found(subjects, IMAGES, folder, "scan", "--image")
    labels = options.labels or _first_found(subjects, LABELS, folder, "label map", "--labels")
    names = _names_of(folder, labels)
    structures = label_names.by_structure(names)
    if options.structures == "paper":
        structures = label_names.paper_structures(names)
    if not structures:
        raise UsageError(f"{labels}: has none of the paper's structures; give --structures all")
    cases, problems = [], {}
    for subject in subjects:
        scan, label = _inside(subject, image), _inside(subject, labels)
        if scan is not None:
            cases.append(SourceCase(name=subject.name, image=scan, labels=(label,) if label else ()))
        elif label is not None:
            problems[subject.name] = f"{subject}: has {labels}, but no {image}; add it or remove the folder"
        else:
            _log.info("%s: has neither %s nor %s: passed over", subject, image, labels)
    return Source(
        format="oasis",
        channel_name="MRI",
        cases=tuple(cases),
        structures=structures,
        known=frozenset({0, *names}),
        read_labels=lambda case: read_labels(case.labels[0]),
        problems=problems,
    )


def _subjects(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder that holds the subjects' folders")
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_clutter(path)]
    if not found:
        raise BadInputError(f"{folder}: has no subfolder; a folder a subject is expected")
    return found


def _inside(subject: Path, name: str) -> Path | None:
    """A file of a subject, which FreeSurfer keeps in a subfolder mri."""
    return next((path for path in (subject / name, subject / "mri" / name) if path.exists()), None)


def _first_found(subjects: Sequence[Path], names: Sequence[str], folder: Path, what: str, option: str) -> str:
    """One name for all subjects, so that aligned and unaligned scans are never mixed."""
    for name in names:
        if any(_inside(subject, name) for subject in subjects):
            return name
    raise BadInputError(f"{folder}: no subject has a {what} called {', '.join(names)}; name it with {option}")


def _names_of(folder: Path, labels: str) -> Mapping[int, str]:
    """What the numbers in a label map mean, by the file's name; the folder's own table goes before ours."""
    for numbering, names in _NUMBERINGS.items():
        if numbering in labels:
            own = folder / f"{numbering}_labels.txt"
            return label_names.read_color_table(own) if own.exists() else names
    raise UsageError(f"--labels {labels}: its name must hold one of {', '.join(_NUMBERINGS)}, which tells the numbers")
