"""Whether an atlas is nearly its own mirror image: then every scan can be looked at a second time, in the mirror."""

from collections.abc import Collection, Sequence

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float, Integer

from rrlsam.geometry import Geometry, Reflection, geometry_of, itk_affine, matrix_rows, to_sitk
from rrlsam.preprocessing.affine import align, alignment_image

LEAST_OVERLAP = 0.5
"""Dice of all structures together, of the atlas's label and its aligned mirror image; bodies with a liver have less."""
LEAST_PART = 0.3
"""Of a structure that lies on both sides, the share of the smaller part."""
LEAST_ALONE, FEW_VOXELS = 0.1, 100
"""The same of each structure that is neither one of a pair nor of two parts: a gallbladder lies on one side, however
large the spine is. Thin ones in the middle have 0.2; of fewer voxels it says little."""
_NEWTON_STEPS = 8


def find_reflection(
    image: Float[np.ndarray, "c z y x"],
    label: Integer[np.ndarray, "z y x"],
    geometry: Geometry,
    pairs: Sequence[tuple[int, int]],
    *,
    n_classes: int,
    n_values: int,
) -> Reflection | None:
    """The reflection of a canonical atlas; None where nothing lies on both sides, or the mirrored label elsewhere.

    `pairs`: values of counterparts. A structure of two parts is its own. What lies on both sides and what does not have
    to overlap each by itself: two kidneys are symmetric in a body that is not; and nothing may lie on one side only.
    Values of at least `n_classes` (ignore) count for nothing.
    """
    from scipy.ndimage import find_objects

    named = {value for pair in pairs for value in pair}
    single = set(range(1, n_classes)) - named
    boxes = find_objects(np.where(label < n_classes, label, 0), n_classes - 1)
    two_sided = named | {value for value in single if (box := boxes[value - 1]) and _has_two_parts(label[box] == value)}
    if not two_sided:
        return None
    swapped = np.arange(n_values)
    for left, right in pairs:
        swapped[[left, right]] = right, left
    world = _symmetry(alignment_image(image, geometry))
    transform = itk_affine(world)
    still = to_sitk(label, geometry)
    mirrored = swapped[sitk.GetArrayFromImage(sitk.Resample(still, still, transform, sitk.sitkNearestNeighbor, 0))]
    known = (label < n_classes) & (mirrored < n_classes)
    here, there = label[known], mirrored[known]
    alone = single - two_sided
    if min(_overlap(here, there, values) for values in (two_sided, alone)) < LEAST_OVERLAP:
        return None
    if any(np.count_nonzero(here == v) >= FEW_VOXELS and _overlap(here, there, {v}) < LEAST_ALONE for v in alone):
        return None
    return Reflection(matrix=matrix_rows(world), swapped=tuple(swapped.tolist()))


def _has_two_parts(structure: Bool[np.ndarray, "z y x"]) -> bool:
    """Whether the two largest connected parts of a structure are nearly all of it, and of like size."""
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(structure.astype(np.uint8))))
    sizes = np.sort(np.bincount(parts.ravel())[1:])
    return len(sizes) > 1 and bool(sizes[-2] >= LEAST_PART * sizes.sum())


def _symmetry(picture: sitk.Image) -> np.ndarray:
    """The reflection (4, 4) of a picture's world, about along x, that carries it best onto itself."""
    flipped = sitk.Flip(picture, (True, False, False))
    flipped.CopyInformation(picture)
    grid, flip = geometry_of(picture), np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = grid.shape[2] - 1
    flip = grid.matrix @ flip @ np.linalg.inv(grid.matrix)
    return _involution(flip @ np.array(align(picture, flipped).matrix))


def _involution(matrix: np.ndarray) -> np.ndarray:
    """The matrix sign function by Newton's iteration (Higham 2008, 5.3): the nearest map that is its own inverse."""
    for _ in range(_NEWTON_STEPS):
        matrix = (matrix + np.linalg.inv(matrix)) / 2
    return matrix


def _overlap(label: Integer[np.ndarray, " n"], mirrored: Integer[np.ndarray, " n"], values: Collection[int]) -> float:
    """Dice of some structures taken together; 1 if there are none."""
    here, there = (np.isin(array, list(values)) for array in (label, mirrored))
    total = int(here.sum() + there.sum())
    return 2.0 * float((here & (label == mirrored)).sum()) / total if total else 1.0
