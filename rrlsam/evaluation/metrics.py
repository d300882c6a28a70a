"""Agreement of two masks, and folds of a displacement field.

Masks are boolean (z, y, x); spacings are millimetres (z, y, x). `valid` is boolean too: voxels where it is False
(nobody labelled them) count for nothing; None: all count. Surfaces and distances are those of voxels: a surface voxel
is a voxel of the mask with a face neighbour outside of it (outside the image is outside the mask), and distances run
between voxel centres. Definitions by surface elements (surfels), as in DeepMind's `surface-distance`, give other
numbers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from rrlsam.system.jsonio import record

Step = tuple[int, int, int]

_DIAGONALS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
_MATRICES = [*(np.diag(signs) for signs in itertools.product((1, -1), repeat=3)), _DIAGONALS, -_DIAGONALS]
_TETRAHEDRA: list[list[Step]] = [[(int(x), int(y), int(z)) for x, y, z in matrix] for matrix in _MATRICES]
"""Steps (x, y, z) from a voxel to the other three corners of its ten tetrahedra."""
_SLAB = 16


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


def iou(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None = None) -> float:
    """|A and B| / |A or B|; NaN when both masks are empty."""
    return confusion(reference, prediction, valid).iou


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


def hd95_mm(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None
) -> float:
    """Hausdorff distance at 95 %, see `SurfaceDistances.hd95_mm`."""
    return surface_distances(reference, prediction, spacing_mm, valid).hd95_mm


def nsd(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    valid: np.ndarray | None = None,
    *,
    tolerance_mm: float = 1.0,
) -> float:
    """Normalised surface Dice, see `SurfaceDistances.nsd`."""
    return surface_distances(reference, prediction, spacing_mm, valid).nsd(tolerance_mm)


def volume_mm3(mask: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None) -> float:
    """Volume of a mask."""
    return float((mask if valid is None else mask & valid).sum() * np.prod(spacing_mm))


@record
class JacobianNumbers:
    """How a map x -> x + u(x) changes volumes, over the interior of a grid."""

    fold_percent: float
    """Voxels at which any of ten one-sided determinants is <= 0 (`folded_voxels`), in percent."""
    fold_percent_central: float
    """Voxels whose determinant by central differences is <= 0, in percent; misses folds of single voxels."""
    smallest: float
    """Smallest determinant by central differences."""
    largest: float
    sdlogj: float
    """Standard deviation of log(max(determinant, 1e-9))."""
    sdlogj_l2r: float
    """The same by the Learn2Reg evaluator's formula: log(clip(determinant + 3, 1e-9, 1e9)), two border voxels cut."""


def jacobian_determinant(displacement: np.ndarray) -> np.ndarray:
    """Determinant (z, y, x) of x -> x + displacement(x) by central differences, one-sided at the border.

    `displacement` is (3, z, y, x) in voxels, components x, y, z, so any direction of a grid's axes is right.
    """
    _check_displacement(displacement)
    determinant = np.empty(displacement.shape[1:])
    for start in range(0, len(determinant), _SLAB):
        stop = min(start + _SLAB, len(determinant))
        first, last = max(start - 1, 0), min(stop + 1, len(determinant))
        determinant[start:stop] = _central(displacement[:, first:last])[start - first : stop - first]
    return determinant


def _central(displacement: np.ndarray) -> np.ndarray:
    """Determinants by central differences, one-sided at the border of what is given."""
    rows = []
    for component in range(3):
        dz, dy, dx = np.gradient(displacement[component].astype(np.float64))
        row = [dx, dy, dz]
        row[component] = row[component] + 1.0
        rows.append(np.stack(row))
    return _determinant(*rows)


def jacobian_numbers(displacement: np.ndarray) -> JacobianNumbers:
    """The numbers of a field (3, z, y, x) in voxels, components x, y, z."""
    determinant = jacobian_determinant(displacement)
    inner = determinant[1:-1, 1:-1, 1:-1]
    cut = determinant[2:-2, 2:-2, 2:-2]
    cut = cut if cut.size else determinant
    return JacobianNumbers(
        fold_percent=fold_percent(displacement),
        fold_percent_central=100 * float((inner <= 0).mean()),
        smallest=float(inner.min()),
        largest=float(inner.max()),
        sdlogj=float(np.log(np.maximum(inner, 1e-9)).std()),
        sdlogj_l2r=float(np.log(np.clip(cut + 3, 1e-9, 1e9)).std()),
    )


def fold_percent(displacement: np.ndarray) -> float:
    """Percent of interior voxels at which a field folds, as `folded_voxels` finds them."""
    folded = folded_voxels(displacement)
    return 100 * int(folded.sum()) / int(np.prod([n - 2 for n in folded.shape]))


def folded_voxels(displacement: np.ndarray) -> np.ndarray:
    """Voxels (z, y, x) where any of ten one-sided determinants of x -> x + displacement(x) is <= 0 or NaN.

    Voxels at the border are never among them. `displacement` is (3, z, y, x) in voxels, components in the order
    x, y, z. The ten are the signed volumes of tetrahedra at a voxel: eight of forward and backward differences, and two
    over the face diagonals, which complete the cut of the voxel grid into tetrahedra. If all are positive the piecewise
    linear map does not fold anywhere.
    Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024.
    """
    _check_displacement(displacement)
    last = displacement.shape[1] - 1
    folded = np.zeros(displacement.shape[1:], dtype=bool)
    for start in range(1, last, _SLAB):
        stop = min(start + _SLAB, last)
        slab = displacement[:, start - 1 : stop + 1].astype(np.float32)
        folded[start:stop, 1:-1, 1:-1] = _folded(slab)
    return folded


def _folded(displacement: np.ndarray) -> np.ndarray:
    """Which interior voxels have a tetrahedron that is turned over or flat."""
    folded = np.zeros([n - 2 for n in displacement.shape[1:]], dtype=bool)
    edges = {step: _edge(displacement, step) for tetrahedron in _TETRAHEDRA for step in tetrahedron}
    for tetrahedron in _TETRAHEDRA:
        orientation = np.sign(np.linalg.det(np.array(tetrahedron, dtype=np.float64)))
        folded |= ~(orientation * _determinant(*(edges[step] for step in tetrahedron)) > 0)
    return folded


def _edge(displacement: np.ndarray, step: Step) -> np.ndarray:
    """Vector (3, z, y, x) from each interior voxel's mapped place to that of its neighbour."""
    moved = tuple(slice(1 + s, n - 1 + s) for s, n in zip(step[::-1], displacement.shape[1:], strict=True))
    centre = (slice(1, -1),) * 3
    return (
        displacement[:, *moved]
        - displacement[:, *centre]
        + np.array(step, dtype=displacement.dtype).reshape(3, 1, 1, 1)
    )


def _determinant(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def _check_displacement(displacement: np.ndarray) -> None:
    if displacement.ndim != 4 or displacement.shape[0] != 3 or min(displacement.shape[1:]) < 3:
        raise ValueError(f"displacement must be (3, z, y, x) with at least 3 voxels an axis, not {displacement.shape}")


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
