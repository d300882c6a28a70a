"""Fingerprints: what a data set looks like without its labels, and what one atlas looks like with its label."""

import base64
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float

from rrlsam.errors import BadInputError
from rrlsam.geometry import Geometry, geometry_of, to_sitk
from rrlsam.labels import LabelScheme
from rrlsam.planning.fingerprint import (
    SCHEMA,
    SIGNATURE_EDGE,
    AtlasFingerprint,
    Fingerprint,
    ScanFingerprint,
    StoredAtlas,
    StructureStats,
    distances,
)
from rrlsam.planning.label_offset import LabelOffset, find_label_offset, move_label
from rrlsam.planning.reflection import find_reflection
from rrlsam.preprocessing.preprocess import nonzero_box
from rrlsam.preprocessing.resample import smooth_and_sample
from rrlsam.scans.channel_stats import channel_stats
from rrlsam.scans.dataset import Dataset, Scan
from rrlsam.scans.scan_checks import read_fitting_label
from rrlsam.scans.volume import (
    channels_first,
    content_of,
    orientation_of,
    read_mended,
    read_telling,
    to_canonical,
)
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress, silent

_SIDES = {"left": "left", "l": "left", "lh": "left", "right": "right", "r": "right", "rh": "right"}
_SIDE_FIRST = re.compile(r"^(left|right|lh|rh|l|r)[\s._-]+(.+)$")
_SIDE_LAST = re.compile(r"^(.+?)[\s._-]+(left|right|lh|rh|l|r)$")


def extract_fingerprint(
    dataset: Dataset, previous: Fingerprint | None = None, *, workers: int | None = None, progress: Progress = silent
) -> Fingerprint:
    """Look at every scan, without any label; entries of `previous` are taken over where the files are the same."""
    known = {} if previous is None or previous.schema != SCHEMA else {scan.case: scan for scan in previous.scans}
    scans = for_each(
        lambda scan: scan_fingerprint(scan, known.get(scan.case)),
        {scan.case: scan for scan in dataset.scans},
        "Fingerprint",
        workers=workers,
        progress=progress,
    )
    found = Fingerprint(
        schema=SCHEMA,
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        scans=tuple(scans.values()),
        mean_distance={},
    )
    others = max(len(scans) - 1, 1)
    means = distances(found).sum(1) / others if scans else np.zeros(0)
    return Fingerprint(
        schema=SCHEMA,
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        scans=found.scans,
        mean_distance={case: round(float(mean), 6) for case, mean in zip(scans, means, strict=True)},
    )


def extract_label_offset(scan: Scan, labels: LabelScheme) -> LabelOffset:
    """By how much a label has to be moved to fit its scan; one that shows nothing lies well."""
    array, label, _ = _read_labelled(scan, labels)
    return find_label_offset(label, array, n_classes=labels.n_classes) if _shown(label, labels).any() else LabelOffset()


def extract_atlas_fingerprint(scan: Scan, labels: LabelScheme, known: StoredAtlas | None = None) -> AtlasFingerprint:
    """Look at one labelled scan, or take over what is known of it if its files and the labels are the same.

    BadInputError if its label shows nothing or does not lie on the scan.
    """
    content = content_of(*scan.images, _label_of(scan))
    kept = None if known is None or known.labels != labels else known.fingerprint
    if kept is not None and (kept.schema, kept.content) == (SCHEMA, content):
        return kept
    array, label, geometry = _read_labelled(scan, labels)
    if not _shown(label, labels).any():
        raise BadInputError(
            f"{scan.label}: holds no structure at all, only background; an atlas must show what to find"
        )
    offset = find_label_offset(label, array, n_classes=labels.n_classes)
    label = move_label(label, offset.shift_vox)
    foreground, pairs = _shown(label, labels), left_right_pairs(labels)
    n_values = len(labels.declared)
    reflection = find_reflection(array, label, geometry, pairs, n_classes=labels.n_classes, n_values=n_values)
    return AtlasFingerprint(
        schema=SCHEMA,
        case=scan.case,
        content=content,
        size_vox=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        foreground_intensity=tuple(channel_stats(channel[foreground]) for channel in array),
        structures=_structures(label, labels, geometry),
        left_right_pairs=pairs,
        label_offset=offset,
        reflection=reflection,
    )


def _read_labelled(scan: Scan, labels: LabelScheme) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """A scan (c, z, y, x) and its label (z, y, x), turned to the canonical grid, and that grid."""
    stored, _ = read_mended(scan.images, scan.repairs)
    fitting = to_canonical(read_fitting_label(_label_of(scan), scan.images[0], stored, labels, scan.repairs))
    image = to_canonical(stored)
    return channels_first(image), sitk.GetArrayFromImage(fitting), geometry_of(image)


def _label_of(scan: Scan) -> Path:
    if scan.label is None:
        raise BadInputError(f"case {scan.case}: has no label, so it cannot be the atlas; choose a labelled case")
    return scan.label


def _shown(label: np.ndarray, labels: LabelScheme) -> np.ndarray:
    """Where a label shows a structure."""
    return (label > 0) & (label < labels.n_classes)


def left_right_pairs(labels: LabelScheme) -> tuple[tuple[int, int], ...]:
    """Base labels (left, right) whose names differ only in the side: "L-X", "X_right", "lh.X", "left" and the like."""
    sides: dict[str, dict[str, int]] = {}
    for structure in labels.structures:
        side, rest = _side_of(structure.name)
        if side is not None and len(structure.values) == 1:
            sides.setdefault(rest, {}).setdefault(side, structure.values[0])
    return tuple(sorted((both["left"], both["right"]) for both in sides.values() if len(both) == 2))


def _side_of(name: str) -> tuple[str | None, str]:
    plain = name.strip().lower()
    if plain in _SIDES:
        return _SIDES[plain], ""
    if match := _SIDE_FIRST.match(plain):
        return _SIDES[match[1]], match[2]
    if match := _SIDE_LAST.match(plain):
        return _SIDES[match[2]], match[1]
    return None, plain


def scan_fingerprint(scan: Scan, known: ScanFingerprint | None = None, *, tell: bool = False) -> ScanFingerprint:
    """Look at one scan, or take over what is known of it if its files are the same; `tell`: log what was mended."""
    content = content_of(*scan.images)
    if known is not None and known.content == content:
        return known
    image = read_telling(scan.images, scan.repairs) if tell else read_mended(scan.images, scan.repairs)[0]
    turned = to_canonical(image)
    geometry = geometry_of(turned)
    array = channels_first(turned)
    start, stop = nonzero_box(array)
    cropped = array[(slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))]
    return ScanFingerprint(
        case=scan.case,
        content=content,
        size_vox=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=orientation_of(image),
        cropped_size_vox=cropped.shape[1:],
        intensity=tuple(channel_stats(channel) for channel in cropped),
        signature=_signature(cropped[0], geometry.box(start, stop)),
    )


def thumbnail(image: sitk.Image) -> Float[np.ndarray, "16 16 16"]:
    """An image shrunk over its whole field of view, so that neither position nor size of the scan matters."""
    geometry = geometry_of(image)
    spacing = [extent / SIGNATURE_EDGE for extent in geometry.extent_mm]
    return sitk.GetArrayFromImage(smooth_and_sample(image, geometry.with_spacing(spacing), sitk.sitkLinear))


def _signature(channel: np.ndarray, geometry: Geometry) -> str:
    low, high = np.percentile(channel, (0.5, 99.5))
    small = thumbnail(to_sitk(np.clip(channel, low, high) if low < high else channel, geometry))
    centred = small.astype(np.float64) - small.mean(dtype=np.float64)
    largest = np.abs(centred).max()
    bytes_ = np.rint(centred / largest * 127 if largest > 0 else centred * 0).astype(np.int8)
    return base64.b64encode(bytes_.tobytes()).decode("ascii")


def _structures(label: np.ndarray, labels: LabelScheme, geometry: Geometry) -> tuple[StructureStats, ...]:
    from scipy.ndimage import find_objects

    base = np.where((label > 0) & (label < labels.n_classes), label, 0)
    counts = np.bincount(base.ravel(), minlength=labels.n_classes)
    voxel_mm3 = float(np.prod(geometry.spacing_mm))
    found = []
    for value, box in enumerate(find_objects(base, labels.n_classes - 1), start=1):
        if box is not None:
            z, y, x = ((int(axis.start), int(axis.stop)) for axis in box)
            stats = StructureStats(
                label=value,
                voxels=int(counts[value]),
                volume_mm3=float(counts[value]) * voxel_mm3,
                box_start=(z[0], y[0], x[0]),
                box_stop=(z[1], y[1], x[1]),
            )
            found.append(stats)
    return tuple(found)
