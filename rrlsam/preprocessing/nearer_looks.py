"""Structures may be a small part of their atlas: there the alignment of scans is improved, look by nearer look."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float

from rrlsam.geometry import Geometry, geometry_of, index_map, matrix_rows
from rrlsam.preprocessing.affine import Alignment, align, alignment_image, improved_affine
from rrlsam.system.threads import one_itk_thread

WHOLE_SHARE = 0.5
"""Where the box of structures is so much of the atlas or more, a look at it shows what the whole shows."""
FEWEST_VOXELS = 8
"""On each axis of what is looked at."""
_CONTEXT = 2.0
"""How much wider than a look the scan is looked at, where the look is thought to lie."""

Window = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A part of the atlas, as `alignment_image` shows it."""

    picture: sitk.Image
    window: Window | None
    """What the intensities (c, z, y, x) of a prepared scan have to go through to be like the picture's."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What scans are aligned to."""

    whole: sitk.Image
    """`alignment_image` of the atlas."""
    looks: tuple[Look, ...]
    """Parts of it about its structures, the widest first; empty where they would show nothing new."""


def make_target(whole: sitk.Image, box: Float[np.ndarray, "c z y x"], grid: Geometry, window: Window) -> Target:
    """The pictures of an atlas: of all of it, and about its structures; `box`: its image on the grid that holds these.

    Looks at the whole picture are each half as wide as the one before, down to twice the box; the last is at the box.
    """
    seen = geometry_of(whole)
    start, stop = _span(seen, np.eye(4), grid, wider=1.0)  # a grid may reach beyond the atlas
    real = grid.box(start, stop)
    if min(real.shape) < FEWEST_VOXELS or not _is_part(seen, *_span(real, np.eye(4), seen, wider=1.0)):
        return Target(whole=whole, looks=())
    parts = (_span(real, np.eye(4), seen, wider=2.0**power) for power in range(7, 0, -1))
    wide = [Look(picture=_cut(whole, *part), window=None) for part in parts if _is_part(seen, *part)]
    near = alignment_image(box[(slice(None), *map(slice, start, stop))], real)
    return Target(whole=whole, looks=(*wide, Look(picture=near, window=window)))


def align_closely(target: Target, array: Float[np.ndarray, "c z y x"], geometry: Geometry) -> Alignment:
    """Align a prepared scan with an atlas: as a whole, then where the atlas's structures lie.

    An organ moves in its body: what is best for the whole is not best for it. The scores are those of the whole.
    """
    found = align(target.whole, alignment_image(array, geometry))
    if found.method != "affine":
        return found
    matrix = np.array(found.matrix)
    with one_itk_thread():
        for look in target.looks:
            start, stop = _span(geometry_of(look.picture), matrix, geometry, wider=_CONTEXT)
            if min(b - a for a, b in zip(start, stop, strict=True)) >= FEWEST_VOXELS:
                part = array[(slice(None), *map(slice, start, stop))]
                picture = alignment_image(look.window(part) if look.window else part, geometry.box(start, stop))
                matrix = improved_affine(look.picture, picture, matrix)
    return replace(found, matrix=matrix_rows(matrix))


def _is_part(grid: Geometry, start: list[int], stop: list[int]) -> bool:
    """Whether voxels of a grid are markedly fewer than all, and enough on every axis to tell something."""
    size = np.subtract(stop, start)
    return bool(min(size) >= FEWEST_VOXELS and np.prod(size) < WHOLE_SHARE * np.prod(grid.shape))


def _cut(picture: sitk.Image, start: list[int], stop: list[int]) -> sitk.Image:
    size = np.subtract(stop, start).tolist()
    return sitk.RegionOfInterest(picture, size[::-1], start[::-1])


def _span(box: Geometry, matrix: np.ndarray, grid: Geometry, *, wider: float) -> tuple[list[int], list[int]]:
    """Voxels of a grid (start, stop; z, y, x) that hold a box, made wider about its middle and carried by a map."""
    middle = (np.array(box.shape[::-1]) - 1) / 2
    corners = (box.corners_vox - middle) * wider + middle
    carried = index_map(box, grid, matrix) @ np.c_[corners, np.ones(len(corners))].T
    low, high = carried[:3].min(1)[::-1], carried[:3].max(1)[::-1]
    start = np.clip(np.floor(low + 0.5), 0, grid.shape).astype(int)
    return start.tolist(), np.clip(np.ceil(high + 0.5), start, grid.shape).astype(int).tolist()
