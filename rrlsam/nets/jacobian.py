"""How a map x -> x + u(x) changes volumes, and where it folds.

A displacement u is (3, z, y, x) in voxels, components x, y, z.
"""

import itertools

import numpy as np

from rrlsam.system.jsonio import record

Step = tuple[int, int, int]

_DIAGONALS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
_MATRICES = [*(np.diag(signs) for signs in itertools.product((1, -1), repeat=3)), _DIAGONALS, -_DIAGONALS]
_TETRAHEDRA: list[list[Step]] = [[(int(x), int(y), int(z)) for x, y, z in matrix] for matrix in _MATRICES]
"""Steps (x, y, z) from a voxel to the other three corners of its ten tetrahedra."""
_SLAB = 16


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
