"""What planning may know: of a data set without any label, and of one atlas with its label."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rrlsam.geometry import Reflection, Size3, Vector3
from rrlsam.labels import LabelScheme
from rrlsam.planning.label_offset import LabelOffset
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.system.jsonio import record

SCHEMA = 1
"""Raised whenever scans or an atlas would be described otherwise than before: what is stored is made anew then."""
SIGNATURE_EDGE = 16
"""Edge length in voxels of the thumbnails by which scans are compared."""


@record
class ScanFingerprint:
    """One scan; no label was read for it. Axis order z, y, x after turning to the canonical orientation."""

    case: str
    content: str
    """SHA-256 of the image files: the entry is made anew when it changes."""
    size_vox: Size3
    spacing_mm: Vector3
    orientation: str
    """Directions of the stored axes, such as "RAS"."""
    cropped_size_vox: Size3
    """After cropping to the non-zero box."""
    intensity: tuple[ChannelStats, ...]
    """One entry a channel, over the non-zero box."""
    signature: str
    """Thumbnail of the first channel, 16 x 16 x 16 signed bytes in base64: its mean is 0, its largest magnitude 127."""


@record
class Fingerprint:
    """A data set, without labels."""

    schema: int
    dataset: str
    channel_names: tuple[str, ...]
    scans: tuple[ScanFingerprint, ...]
    """Sorted by case."""
    mean_distance: dict[str, float]
    """Case to mean distance from all others: 1 - correlation of the thumbnails, 0 (alike) to 2."""


@record
class StructureStats:
    """One base label of an atlas."""

    label: int
    voxels: int
    volume_mm3: float
    box_start: Size3
    """First voxel of its box in the canonical atlas, axis order z, y, x."""
    box_stop: Size3
    """One past the last voxel."""


@record
class AtlasFingerprint:
    """One labelled scan, made on demand for the fold that uses it."""

    schema: int
    case: str
    content: str
    """SHA-256 of the images and of the label."""
    size_vox: Size3
    """Canonical atlas, axis order z, y, x."""
    spacing_mm: Vector3
    foreground_intensity: tuple[ChannelStats, ...]
    """One entry a channel, over all labelled voxels (CT clipping)."""
    structures: tuple[StructureStats, ...]
    """Only labels that occur."""
    left_right_pairs: tuple[tuple[int, int], ...]
    """Base labels that mirror each other, by name."""
    label_offset: LabelOffset = LabelOffset()
    """How far the label lies beside its image; all numbers above are those of the moved label."""
    reflection: Reflection | None = None
    """Where the atlas is nearly its own mirror image."""


@record
class StoredAtlas:
    """An atlas as it was looked at before."""

    labels: LabelScheme
    """What its label's values were taken to mean."""
    fingerprint: AtlasFingerprint


def most_central(
    fingerprint: Fingerprint, candidates: Sequence[str], *, among: Sequence[str], n: int = 1, given: Sequence[str] = ()
) -> tuple[str, ...]:
    """The `given` cases and further candidates, `n` in all, that together lie nearest to the cases `among`.

    The best candidate comes first; ties go to the first name.
    """
    names = [scan.case for scan in fingerprint.scans]
    rows = [*given, *sorted(set(candidates) - set(given))]
    distance = distances(fingerprint)[np.ix_([names.index(case) for case in rows], [names.index(c) for c in among])]
    return tuple(rows[i] for i in medoids(distance, n, given=len(given)))


def medoids(distance: Float[np.ndarray, "c m"], n: int, *, given: int = 0) -> list[int]:
    """Rows that together lie nearest to all columns, found one after the other (greedy k-medoids).

    The first `given` rows are taken as they are; `n`: rows in all.
    """
    chosen = list(range(given))
    nearest = distance[:given].min(0, initial=np.inf)
    while len(chosen) < min(n, len(distance)):
        costs = np.minimum(nearest, distance).sum(1)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen


def distances(fingerprint: Fingerprint) -> np.ndarray:
    """Distance of every scan to every other, (n, n), in the order of `fingerprint.scans`."""
    import base64

    rows = [np.frombuffer(base64.b64decode(scan.signature), dtype=np.int8) for scan in fingerprint.scans]
    return signature_distances(np.stack(rows).astype(np.float64))


def signature_distances(signatures: np.ndarray) -> np.ndarray:
    """1 - correlation of flattened thumbnails (n, m), as (n, n)."""
    centred = signatures - signatures.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norm > 0, norm, 1.0)
    return np.clip(1.0 - unit @ unit.T, 0.0, 2.0)
