"""What can be wrong with one scan and its label."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError, listed
from rrlsam.geometry import Geometry, geometry_of, make_geometry
from rrlsam.labels import LabelScheme
from rrlsam.scans.dataset import Scan
from rrlsam.scans.nifti_walk import read_nifti_header
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.scans.volume import read_labels, read_mended, same_grid
from rrlsam.system.files import spelt

PLAUSIBLE_SPACING_MM = (0.05, 20.0)
_RESAMPLE_LABEL = "resample the label to the scan's grid"


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """One thing that is wrong (error) or odd (warning), and what to do about it."""

    severity: Literal["error", "warning"]
    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.fix}"


def check_images(scan: Scan) -> tuple[list[Finding], Geometry | None]:
    """All findings about a scan's images, and the grid of the first, if that could be read."""
    findings: list[Finding] = []
    images: dict[Path, sitk.Image] = {}
    for path in scan.images:
        try:
            images[path], mended = read_mended((path,), scan.repairs)
            findings += [_mended(text, path) for text in mended]
        except BadInputError as error:
            findings.append(_missing(path) if not path.exists() else from_error(error, path))
    grid = geometry_of(images[scan.images[0]]) if scan.images and scan.images[0] in images else None
    for path, image in images.items():
        findings += _check_image(path, image)
        if path != scan.images[0] and grid is not None:
            findings += _misplaced(path, image, scan.images[0], grid, "resample all channels to one grid", scan.repairs)
    return findings, grid


CheckImages = Callable[[Scan], tuple[list[Finding], Geometry | None]]


def check_scan(scan: Scan, labels: LabelScheme, look: CheckImages = check_images) -> list[Finding]:
    """All findings about a scan's files; `look`: checks the images, as check_images does."""
    findings, grid = look(scan)
    if scan.label is not None and scan.images:
        findings += _check_label(scan.label, scan, grid, labels)
    return findings


def from_error(error: BadInputError, path: Path) -> Finding:
    """A reader's message "FILE: problem; remedy" taken apart."""
    text = str(error).removeprefix(f"{spelt(path)}: ")
    problem, _, fix = text.rpartition("; ")
    return Finding(
        severity="error", file=str(path), problem=problem or text, fix=fix if problem else "replace the file"
    )


def _mended(text: str, path: Path) -> Finding:
    problem, _, done = text.removeprefix(f"{path}: ").rpartition("; ")
    return Finding(severity="warning", file=str(path), problem=problem, fix=done)


def _missing(path: Path) -> Finding:
    fix = "every scan needs one file a channel of channel_names; add the file or remove the case"
    return Finding(severity="error", file=str(path), problem="the file is missing", fix=fix)


def odd_geometry(path: Path, image: sitk.Image) -> Iterator[Finding]:
    """Warnings about where a scan lies: a unit that cannot be, two places in one header."""
    spacing = image.GetSpacing()
    low, high = PLAUSIBLE_SPACING_MM
    if not all(low <= s <= high for s in spacing):
        problem = f"implausible spacing {tuple(round(s, 5) for s in spacing)} mm"
        yield Finding(severity="warning", file=str(path), problem=problem, fix="check the unit, it must be millimetres")
    used, other = two_places(path, geometry_of(image))
    if other:
        problem = f"its qform and sform place it differently; the {used} is used"
        yield Finding(severity="warning", file=str(path), problem=problem, fix=f"if the {other} is right, copy it over")


def two_places(path: Path, grid: Geometry) -> tuple[str, str]:
    """The header's form that was used and the one that disagrees with it, for a NIfTI file; else two empty names."""
    if not path.name.endswith((".nii", ".nii.gz")):
        return "", ""
    header = read_nifti_header(path)
    try:
        forms = {"sform": header.get_sform(coded=True), "qform": header.get_qform(coded=True)}
    except ValueError:  # a quaternion that is no rotation places nothing
        return "", ""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world is RAS, ITK's LPS
    given = {name: make_geometry(grid.shape, flip @ m) for name, (m, code) in forms.items() if code > 0}
    if len(given) < 2 or same_grid(given["sform"], given["qform"]):
        return "", ""
    return ("sform", "qform") if same_grid(given["sform"], grid) else ("qform", "sform")


def _check_image(path: Path, image: sitk.Image) -> Iterator[Finding]:
    yield from odd_geometry(path, image)
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        problem = f"every voxel is {float(values.min()):g}"
        yield Finding(severity="warning", file=str(path), problem=problem, fix="check whether the scan is empty")


def _check_label(path: Path, scan: Scan, grid: Geometry | None, labels: LabelScheme) -> Iterator[Finding]:
    try:
        label = read_labels(path)
    except BadInputError as error:
        yield from_error(error, path)
        return
    yield from _undeclared(path, label, labels)
    if grid is not None:
        yield from _misplaced(path, label, scan.images[0], grid, _RESAMPLE_LABEL, scan.repairs)


def read_fitting_label(
    path: Path, scan: Path, image: sitk.Image, labels: LabelScheme, repairs: Repairs = NO_REPAIRS
) -> sitk.Image:
    """Read a label map; BadInputError if it holds undeclared values or lies on another grid than its scan's image.

    Where `repairs` allow another grid of the same size, the label is laid onto the image.
    """
    label = read_labels(path)
    misplaced = _misplaced(path, label, scan, geometry_of(image), _RESAMPLE_LABEL, repairs)
    _refuse_errors((*_undeclared(path, label, labels), *misplaced))
    return _laid_onto(image, label, repairs)


def read_label_beside(
    path: Path, scan: Path, image: sitk.Image, repairs: Repairs = NO_REPAIRS
) -> tuple[sitk.Image, tuple[str, ...]]:
    """Read a label map in the world of a scan's image, on any grid; second, what was mended.

    BadInputError if it has the image's size and lies elsewhere; where `repairs` allow that, it is laid onto the image.
    """
    label = read_labels(path)
    if label.GetSize() != image.GetSize():
        return label, ()
    findings = tuple(_misplaced(path, label, scan, geometry_of(image), _RESAMPLE_LABEL, repairs))
    _refuse_errors(findings)
    return _laid_onto(image, label, repairs), tuple(str(finding) for finding in findings)


def _refuse_errors(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.severity == "error":
            raise BadInputError(str(finding))


def read_own_label(scan: Scan) -> sitk.Image:
    """The label of a labelled scan, laid onto its first image where its repairs allow another grid."""
    if scan.label is None:
        raise BadInputError(f"case {scan.case}: has no label; choose a labelled case")
    label = read_labels(scan.label)
    if not scan.repairs.allow_geometry_mismatch:
        return label
    return _laid_onto(read_mended(scan.images[:1], scan.repairs)[0], label, scan.repairs)


def _laid_onto(image: sitk.Image, label: sitk.Image, repairs: Repairs) -> sitk.Image:
    """A label, on its scan's grid if its own may be ignored and both are of one size."""
    if repairs.allow_geometry_mismatch and label.GetSize() == image.GetSize():
        label.CopyInformation(image)
    return label


def _undeclared(path: Path, label: sitk.Image, labels: LabelScheme) -> Iterator[Finding]:
    values, counts = np.unique(sitk.GetArrayViewFromImage(label), return_counts=True)
    wrong = [f"{v} ({n} voxels)" for v, n in zip(values, counts, strict=True) if int(v) not in labels.declared]
    if wrong:
        problem = f"label values not declared in dataset.json: {listed(wrong)}"
        yield Finding(severity="error", file=str(path), problem=problem, fix="declare them or correct the label map")


def _misplaced(
    path: Path, image: sitk.Image, first: Path, expected: Geometry, remedy: str, repairs: Repairs
) -> Iterator[Finding]:
    """An error for another grid than that of a scan's first image; a warning if that may be ignored."""
    grid = geometry_of(image)
    differences = grid_differences(grid, expected)
    if not differences:
        return
    problem = f"its grid differs from that of {first.name}: {differences}"
    if grid.shape != expected.shape:
        yield Finding(severity="error", file=str(path), problem=problem, fix=remedy)
    elif repairs.allow_geometry_mismatch:
        yield Finding(severity="warning", file=str(path), problem=problem, fix="laid onto that, as was asked for")
    else:
        fix = f"{remedy}, or go on by voxels alone with --allow_geometry_mismatch"
        yield Finding(severity="error", file=str(path), problem=problem, fix=fix)


def grid_differences(a: Geometry, b: Geometry) -> str:
    """Which of size, spacing, origin and direction differ, with both values (x, y, z); empty if none does."""
    if same_grid(a, b):
        return ""
    parts = []
    for name, left, right, tolerance in (
        ("size", a.shape[::-1], b.shape[::-1], 0.0),
        ("spacing", a.spacing_mm[::-1], b.spacing_mm[::-1], 1e-5),
        ("origin", a.matrix[:3, 3], b.matrix[:3, 3], 1e-3),
        ("direction", _directions(a), _directions(b), 1e-5),
    ):
        if not np.allclose(left, right, rtol=0, atol=tolerance):
            parts.append(f"{name} {_short(left)} instead of {_short(right)}")
    return ", ".join(parts) or "voxel positions"


def _directions(grid: Geometry) -> np.ndarray:
    return (grid.matrix[:3, :3] / np.array(grid.spacing_mm[::-1])).ravel()


def _short(values: object) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in np.asarray(values, dtype=np.float64)) + ")"
