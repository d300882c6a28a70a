"""Structures may be a small part of their atlas: there the alignment of scans is improved, look by nearer look."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float

from rrlsam.geometry import Geometry, geometry_of, index_map, matrix_rows
from rrlsam.preprocessing.affine import Alignment, align, alignment_image, improved_affine
from rrlsam.system.threads import one_itk_thread

WHOLE_SHARE = 0.5
"""Where the box of structures is so much of the atlas or more, a look at it shows what the whole shows."""
_FEWEST_VOXELS = 8
"""On each axis of a look."""
_CONTEXT = 1.3
"""How much wider than the box a scan is looked at, where the box is thought to lie."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What scans are aligned to: pictures of one atlas, as `alignment_image` makes them."""

    whole: sitk.Image
    near: sitk.Image | None
    """The box of its structures alone, in finer voxels; None where a look at it would show nothing new."""
    window: Callable[[np.ndarray], np.ndarray]
    """What the intensities (c, z, y, x) of a prepared scan went through in `near`."""


def make_target(
    whole: sitk.Image,
    box: Float[np.ndarray, "c z y x"],
    grid: Geometry,
    window: Callable[[np.ndarray], np.ndarray],
) -> Target:
    """The pictures of an atlas: of all of it, and of its image on the grid that holds its structures."""
    seen = geometry_of(whole)
    start, stop = _span(grid, np.eye(4), seen, wider=1.0)
    share = np.prod(stop - start) / np.prod(seen.shape)
    small = share < WHOLE_SHARE and min(grid.shape) >= _FEWEST_VOXELS
    return Target(whole=whole, near=alignment_image(box, grid) if small else None, window=window)


def align_closely(target: Target, array: Float[np.ndarray, "c z y x"], geometry: Geometry) -> Alignment:
    """Align a prepared scan with an atlas: as a whole, then where the atlas's structures lie.

    The looks are at boxes half as wide as the ones before. Each keeps what it found if that is plausible and raises the
    mutual information within it. The scores are those of the whole. An organ moves in its body: of single structures of
    brains, the affine map of the whole head overlaps 0.59 (Dice), and that of the nearest look 0.74.
    """
    moving = alignment_image(array, geometry)
    found = align(target.whole, moving)
    if target.near is None or found.method != "affine":
        return found
    box, matrix = geometry_of(target.near), np.array(found.matrix)
    with one_itk_thread():
        for look in _looks(target.whole, box):
            matrix = improved_affine(look, moving, matrix)
        start, stop = (edge.tolist() for edge in _span(box, matrix, geometry, wider=_CONTEXT))
        part = array[(slice(None), *map(slice, start, stop))]
        if min(part.shape[1:]) >= _FEWEST_VOXELS:
            picture = alignment_image(target.window(part), geometry.box(start, stop))
            matrix = improved_affine(target.near, picture, matrix)
    return replace(found, matrix=matrix_rows(matrix))


def _looks(whole: sitk.Image, box: Geometry) -> Iterator[sitk.Image]:
    """Parts of the atlas about a box, the widest first: each half as wide as the one before, the last twice the box."""
    seen = geometry_of(whole)
    spans = [_span(box, np.eye(4), seen, wider=2.0**power) for power in range(1, 8)]
    for start, stop in reversed(spans):
        size = stop - start
        if np.prod(size) < WHOLE_SHARE * np.prod(seen.shape) and min(size) >= _FEWEST_VOXELS:
            yield sitk.RegionOfInterest(whole, size[::-1].tolist(), start[::-1].tolist())


def _span(box: Geometry, matrix: np.ndarray, grid: Geometry, *, wider: float) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a grid (start, stop; z, y, x) that hold a box, made wider about its middle and carried by a map."""
    middle = (np.array(box.shape[::-1]) - 1) / 2
    corners = (box.corners_vox - middle) * wider + middle
    carried = index_map(box, grid, matrix) @ np.c_[corners, np.ones(len(corners))].T
    low, high = carried[:3].min(1)[::-1], carried[:3].max(1)[::-1]
    start = np.clip(np.floor(low + 0.5), 0, grid.shape).astype(int)
    return start, np.clip(np.ceil(high + 0.5), start, grid.shape).astype(int)
