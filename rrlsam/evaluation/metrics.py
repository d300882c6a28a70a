"""Agreement of two masks: overlap, and distances of their surfaces.

Masks are boolean (z, y, x); spacings are millimetres (z, y, x). `valid` is boolean too: voxels where it is False
(nobody labelled them) count for nothing; None: all count. Surfaces and distances are those of voxels: a surface voxel
is a voxel of the mask with a face neighbour outside of it (outside the image is outside the mask), and distances run
between voxel centres. Definitions by surface elements (surfels), as in DeepMind's `surface-distance`, give other
numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Numbers of voxels; positive means inside the mask."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); NaN when both masks are empty."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else float("nan")

    @property
    def iou(self) -> float:
        """|A and B| / |A or B|; NaN when both masks are empty."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else float("nan")


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Distance of every surface voxel to the nearest of the other surface, mm; infinite when there is none."""

    of_reference: np.ndarray
    of_prediction: np.ndarray
    unknown: bool = False
    """A mask is not empty and yet has no surface, since it ends where nobody labelled: nothing can be said."""

    @property
    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles; infinite when one mask is empty, NaN when both are."""
        sides = (self.of_reference, self.of_prediction)
        if self.unknown or not any(side.size for side in sides):
            return float("nan")
        if not all(side.size for side in sides):
            return float("inf")
        return max(float(np.percentile(side, 95)) for side in sides)

    def nsd(self, tolerance_mm: float = 1.0) -> float:
        """Normalised surface Dice: share of all surface voxels within the tolerance of the other surface.

        0 when one mask is empty, NaN when both are. Nikolov et al., J Med Internet Res 2021, on voxels.
        """
        total = self.of_reference.size + self.of_prediction.size
        near = (self.of_reference <= tolerance_mm).sum() + (self.of_prediction <= tolerance_mm).sum()
        return float(near / total) if total and not self.unknown else float("nan")


def confusion(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None = None) -> Confusion:
    """Count the voxels of two masks by agreement."""
    _check_shapes(reference, prediction, valid)
    inside = np.ones(reference.shape, dtype=bool) if valid is None else valid
    tp = int((reference & prediction & inside).sum())
    n_reference, n_prediction = int((reference & inside).sum()), int((prediction & inside).sum())
    fp, fn = n_prediction - tp, n_reference - tp
    return Confusion(tp=tp, fp=fp, fn=fn, tn=int(inside.sum()) - tp - fp - fn)


def dice(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None = None) -> float:
    """2 |A and B| / (|A| + |B|); NaN when both masks are empty."""
    return confusion(reference, prediction, valid).dice


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None
) -> SurfaceDistances:
    """Distances between two surfaces, both ways.

    The border of the voxels that count is no surface: there nobody knows whether the structure ends. Where a mask ends
    nowhere else, its surface is unknown.
    """
    _check_shapes(reference, prediction, valid)
    counted = np.ones(reference.shape, dtype=bool) if valid is None else valid
    box = _joint_box((reference | prediction) & counted)
    surfaces = [_surface(mask[box], counted[box]) for mask in (reference, prediction)]
    first, second = surfaces
    return SurfaceDistances(
        of_reference=_distances(first, second, spacing_mm),
        of_prediction=_distances(second, first, spacing_mm),
        unknown=any(
            not surface.any() and (mask & counted).any()
            for surface, mask in zip(surfaces, (reference, prediction), strict=True)
        ),
    )


def volume_mm3(mask: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None) -> float:
    """Volume of a mask."""
    return float((mask if valid is None else mask & valid).sum() * np.prod(spacing_mm))


def _check_shapes(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None) -> None:
    shapes = [a.shape for a in (reference, prediction, valid) if a is not None]
    if len(set(shapes)) > 1 or any(a.dtype != bool for a in (reference, prediction, valid) if a is not None):
        raise ValueError(f"masks must be boolean and of one shape, not {', '.join(map(str, shapes))}")


def _joint_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around a mask with a margin of one voxel where the image allows; empty for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(hit[0] - 1, 0), hit[-1] + 2) if hit.size else slice(0, 0))
    return tuple(box)


def _surface(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return mask & counted & ~ndimage.binary_erosion(mask | ~counted)


def _distances(of: np.ndarray, to: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """From each voxel of one surface to the nearest of the other; a distance transform would take 49 bytes a voxel."""
    here, there, spacing = np.argwhere(of), np.argwhere(to), np.asarray(spacing_mm)
    if not len(here) or not len(there):
        return np.full(len(here), np.inf)
    _, nearest = KDTree(there * spacing).query(here * spacing)
    return np.linalg.norm((here - there[nearest]) * spacing, axis=1)
