"""Where one scan may lie in another that shows much more: all shifts, on coarse images."""

from itertools import product

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float

from rrlsam.geometry import geometry_of
from rrlsam.preprocessing.resample import smooth_and_sample

_LATTICE_VOXELS, _MOST_LATTICE_VOXELS = 20, 64
"""Along the longest axis of the smaller scan; along that of the larger one, where that is finer."""
_LATTICE_STEP = 2
"""Voxels between two shifts."""
_FAR_STARTS = 3
_LEAST_OVERLAP = 0.5
"""Share of the smaller scan that a far start leaves inside the other."""


def far_starts(fixed: sitk.Image, moving: sitk.Image, found: np.ndarray) -> list[np.ndarray]:
    """Shifts more promising than any near the one that was found: a chest may lie anywhere in a scan of a body.

    Correlation of both scans on one coarse lattice, where every shift is one of its voxels.
    """
    shorter, longer = sorted(max(geometry_of(image).extent_mm) for image in (fixed, moving))
    spacing = max(shorter / _LATTICE_VOXELS, longer / _MOST_LATTICE_VOXELS)
    (here, origin_here), (there, origin_there) = (_on_lattice(image, spacing) for image in (fixed, moving))
    least = _LEAST_OVERLAP * min(int(np.isfinite(here).sum()), int(np.isfinite(there).sum()))
    centred = [round(n) for n in ((origin_here - origin_there) / spacing)[::-1]]
    shifts = [
        [shift for shift in range(-n + 1, m) if (shift - centre) % _LATTICE_STEP == 0]
        for n, m, centre in zip(here.shape, there.shape, centred, strict=True)
    ]
    scores = {shift: score for shift in product(*shifts) if (score := _lattice_score(here, there, shift, least)) > 0}
    near = ((found + origin_here - origin_there) / spacing)[::-1]
    best: list[tuple[int, ...]] = []
    for shift in sorted(scores, key=lambda shift: -scores[shift]):
        if len(best) == _FAR_STARTS or np.abs(shift - near).max() <= _LATTICE_STEP:
            break
        if all(np.abs(np.subtract(shift, other)).max() > _LATTICE_STEP for other in best):
            best.append(shift)
    starts = []
    for shift in best:
        matrix = np.eye(4)
        matrix[:3, 3] = origin_there + spacing * np.array(shift[::-1]) - origin_here
        starts.append(matrix)
    return starts


def correlation(first: Float[np.ndarray, "z y x"], second: Float[np.ndarray, "z y x"], least: float = 0.0) -> float:
    """Correlation where neither is NaN; 0 where that is too little, or one is constant."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < max(least, 2):
        return 0.0
    a, b = first[both] - first[both].mean(), second[both] - second[both].mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _on_lattice(image: sitk.Image, spacing: float) -> tuple[Float[np.ndarray, "z y x"], np.ndarray]:
    """A scan on cubic voxels along the world's axes, NaN outside of it; and the first voxel's position."""
    own = geometry_of(image)
    corners = own.corners_vox @ own.matrix[:3, :3].T + own.matrix[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = [max(1, round(extent / spacing)) for extent in (high - low)]
    origin = (low + high) / 2 - spacing * (np.array(size) - 1) / 2
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing([spacing] * 3)
    grid.SetOrigin(origin.tolist())
    coarse = smooth_and_sample(image, own.with_spacing([max(s, spacing) for s in own.spacing_mm]), sitk.sitkLinear)
    return sitk.GetArrayFromImage(sitk.Resample(coarse, grid, sitk.Transform(), sitk.sitkLinear, np.nan)), origin


def _lattice_score(
    here: Float[np.ndarray, "z y x"],
    there: Float[np.ndarray, "z2 y2 x2"],
    shift: tuple[int, ...],
    least: float,
) -> float:
    """Correlation where voxel `v` of the one lies on voxel `v + shift` of the other; 0 if less overlaps."""
    cut = [(max(0, -s), min(n, m - s)) for s, n, m in zip(shift, here.shape, there.shape, strict=True)]
    if np.prod([stop - start for start, stop in cut]) < least:
        return 0.0
    first = here[tuple(slice(*c) for c in cut)]
    second = there[tuple(slice(start + s, stop + s) for s, (start, stop) in zip(shift, cut, strict=True))]
    return correlation(first, second, least)
