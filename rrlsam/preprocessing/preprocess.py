"""Scan to network input: turned, cropped to what is not empty, normalised, resampled. No label is ever read here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.geometry import Geometry, Size3, geometry_of
from rrlsam.plan import DataPlan
from rrlsam.preprocessing.normalize import normalize
from rrlsam.preprocessing.resample import resample
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.dataset import Scan
from rrlsam.scans.volume import channels_first, content_of, read_mended, to_canonical
from rrlsam.system.jsonio import load_sealed, record, save_sealed
from rrlsam.system.storage import array_sha256, read_array, write_array

SCHEMA = 2
"""Version of the sidecar; a case stored under another number is prepared again."""
SOFT_TISSUE_HU = (-160.0, 240.0)
"""Radiology's window of the abdomen, from fat to enhanced vessels."""
MOST_DEVIATIONS = 8.0
"""How wide the window of a `ct` channel may become in units of its scale: of one organ the deviation is small."""
_SAME_SPACING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A scan as the networks see it, and how it came from the canonical scan."""

    array: np.ndarray
    """(c, z, y, x), float32, normalised; `ct` channels are still in Hounsfield units."""
    canonical: Geometry
    """The turned scan before cropping."""
    crop_start: Size3
    """First voxel of the non-zero box in the canonical scan, axis order z, y, x."""
    crop_stop: Size3
    """One past its last voxel."""
    stored: Geometry
    """Grid of `array`."""


@record
class StoredCase:
    """Sidecar of a prepared scan."""

    schema: int
    case: str
    content: str
    """SHA-256 of the image files."""
    data: DataPlan
    canonical: Geometry
    crop_start: Size3
    crop_stop: Size3
    stored: Geometry
    payload: str
    """SHA-256 of the array's bytes."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A prepared scan, read back."""

    array: np.ndarray
    """(c, z, y, x), float32."""
    geometry: Geometry
    info: StoredCase


def prepare_image(image: sitk.Image, data: DataPlan) -> Prepared:
    """Canonical orientation, crop to the non-zero box, normalise, resample: for training and prediction alike."""
    turned = to_canonical(image)
    canonical = geometry_of(turned)
    array = channels_first(turned)
    if len(array) != len(data.normalization):
        raise BadInputError(f"the scan has {len(array)} channel(s), the plan expects {len(data.normalization)}")
    start, stop = nonzero_box(array)
    array = array[(slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))]
    array = normalize(array, data)
    cropped = canonical.box(start, stop)
    stored = _target_grid(cropped, data)
    if stored != cropped:
        array = resample(array, cropped, stored)
    return Prepared(
        array=np.ascontiguousarray(array, dtype=np.float32),
        canonical=canonical,
        crop_start=start,
        crop_stop=stop,
        stored=stored,
    )


def preprocess_case(scan: Scan, data: DataPlan, folder: Path) -> StoredCase:
    """Prepare one scan and store it as CASE.b2nd and CASE.json; a stored case that still fits is left alone."""
    content = content_of(*scan.images)
    kept = _still_valid(folder, scan.case, content, data)
    if kept is not None:
        return kept
    prepared = prepare_image(read_mended(scan.images, scan.repairs)[0], data)
    info = StoredCase(
        schema=SCHEMA,
        case=scan.case,
        content=content,
        data=data,
        canonical=prepared.canonical,
        crop_start=prepared.crop_start,
        crop_stop=prepared.crop_stop,
        stored=prepared.stored,
        payload=array_sha256(prepared.array),
    )
    write_array(prepared.array, array_path(folder, scan.case))
    save_sealed(info, _sidecar_path(folder, scan.case))
    return info


def load_case(folder: Path, case: str) -> Case:
    """Read a prepared scan; BadInputError if it is missing or was damaged since."""
    path = array_path(folder, case)
    try:
        info = load_sealed(StoredCase, _sidecar_path(folder, case))
        array = read_array(path)
        if array_sha256(array) != info.payload or array.shape[1:] != info.stored.shape:
            raise BadInputError(f"{path}: corrupt, its content is not what was stored")
    except BadInputError as error:
        raise BadInputError(f"{error}; run rrlsam_plan_and_preprocess again") from error
    return Case(array=array, geometry=info.stored, info=info)


def window_ct(array: np.ndarray, data: DataPlan, foreground: tuple[ChannelStats, ...]) -> np.ndarray:
    """Clip and scale `ct` channels of (c, z, y, x) by the atlas foreground; other channels stay as they are.

    nnU-Net's rule, but soft tissue stays in any case: one label may show nothing but an enhanced vessel or a lung. All
    else would then be one value, and without contrast medium the vessel too.
    """
    if "ct" not in data.normalization:
        return array
    array = array.astype(np.float32, copy=True)
    for channel, kind in enumerate(data.normalization):
        if kind == "ct":
            stats = foreground[channel]
            low, high = min(stats.percentile_00_5, SOFT_TISSUE_HU[0]), max(stats.percentile_99_5, SOFT_TISSUE_HU[1])
            np.clip(array[channel], low, high, out=array[channel])
            array[channel] = (array[channel] - stats.mean) / max(stats.std, (high - low) / MOST_DEVIATIONS)
    return array


def nonzero_box(array: np.ndarray) -> tuple[Size3, Size3]:
    """Smallest box of (c, z, y, x) that holds every voxel non-zero in any channel: (start, stop); all if none is."""
    from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask

    mask = (array != 0).any(0)
    if not mask.any():
        return (0, 0, 0), mask.shape
    (z0, z1), (y0, y1), (x0, x1) = ((int(a), int(b)) for a, b in get_bbox_from_mask(mask))
    return (z0, y0, x0), (z1, y1, x1)


def array_path(folder: Path, case: str) -> Path:
    """Where a prepared scan's array lies."""
    return folder / f"{case}.b2nd"


def _sidecar_path(folder: Path, case: str) -> Path:
    return folder / f"{case}.json"


def _target_grid(cropped: Geometry, data: DataPlan) -> Geometry:
    ratio = np.array(cropped.spacing_mm) / np.array(data.spacing_mm)
    return cropped if (np.abs(ratio - 1) <= _SAME_SPACING).all() else cropped.with_spacing(data.spacing_mm)


def _still_valid(folder: Path, case: str, content: str, data: DataPlan) -> StoredCase | None:
    try:
        info = load_case(folder, case).info
    except BadInputError:
        return None
    return info if (info.schema, info.content, info.data) == (SCHEMA, content, data) else None
