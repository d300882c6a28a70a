"""Which lung is left and which is right, told by where they lie in the world, not by how the voxels are stored."""

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.scans.volume import image_like

LEFT, RIGHT = 1, 2
_LEAST_SHARE = 0.2
"""The smaller lung is at least this share of the larger one, or it is no lung."""
_CUTS_MM = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 15.0)
"""How deep the bridge between two lungs is dug into until they come apart."""


def split_lungs(mask: sitk.Image, source: str) -> sitk.Image:
    """A mask of both lungs (0, 1) as 1, the patient's left lung, and 2, the right one; `source` names it in errors.

    The two largest parts are the lungs; where they touch, the mask is eroded until they come apart, and every voxel
    then belongs to the nearer lung. BadInputError if no two parts of like size lie left and right of each other.
    """
    region, window = _cropped(mask, source)
    depth = None
    for cut in _CUTS_MM:
        if cut > 0 and depth is None:
            depth = -_distance(region)
        seeds = _two_sides(region if depth is None else depth > cut)
        if seeds is not None:
            left, right = (sitk.GetArrayFromImage(_distance(seed)) for seed in seeds)
            inside = sitk.GetArrayViewFromImage(region) > 0
            array = np.zeros(mask.GetSize()[::-1], dtype=np.int32)
            array[window] = np.where(inside, np.where(left <= right, LEFT, RIGHT), 0)
            return image_like(array, mask)
    raise BadInputError(
        f"{source}: cannot be split into a left and a right lung; is one missing? Label the sides, or convert it with "
        "--one_lung"
    )


def sides_by_position(mask: sitk.Image, source: str) -> sitk.Image:
    """A mask of two values with 1 for the one that lies on the patient's left and 2 for the other."""
    values = [value for value in np.unique(sitk.GetArrayViewFromImage(mask)).tolist() if value]
    first, second = (_centre(mask == value) for value in values)
    if not _beside(first, second):
        raise BadInputError(
            f"{source}: its values {values[0]} and {values[1]} do not lie left and right of each other; say which is "
            "which with --left_values and --right_values"
        )
    left = values[0] if first[0] > second[0] else values[1]
    numbers = sitk.GetArrayViewFromImage(mask)
    array = np.where(numbers == left, LEFT, np.where(numbers != 0, RIGHT, 0)).astype(np.int32)
    return image_like(array, mask)


def sides_are_swapped(sides: sitk.Image) -> bool:
    """Whether what is called the left lung lies clearly on the patient's right of the other."""
    if len(np.unique(sitk.GetArrayViewFromImage(sides))) < 3:
        return False
    left, right = _centre(sides == LEFT), _centre(sides == RIGHT)
    return _beside(left, right) and bool(left[0] < right[0])


def _cropped(mask: sitk.Image, source: str) -> tuple[sitk.Image, tuple[slice, ...]]:
    """The mask's box with a margin of one voxel inside the grid, and where it lies in the array (z, y, x)."""
    array = sitk.GetArrayViewFromImage(mask)
    if not array.any():
        raise BadInputError(f"{source}: is empty; label the lungs or remove the file")
    window = []
    for axis in range(3):
        used = np.flatnonzero(array.any(axis=tuple(other for other in range(3) if other != axis)))
        window.append(slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2))
    z, y, x = window
    return sitk.Cast(mask[x, y, z] != 0, sitk.sitkUInt8), tuple(window)


def _two_sides(core: sitk.Image) -> tuple[sitk.Image, sitk.Image] | None:
    """The two largest parts, left one first, if they can be the two lungs."""
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(core), sortByObjectSize=True)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(parts)
    if shapes.GetNumberOfLabels() < 2:
        return None
    if shapes.GetPhysicalSize(2) < _LEAST_SHARE * shapes.GetPhysicalSize(1):
        return None
    first, second = (np.array(shapes.GetCentroid(label)) for label in (1, 2))
    if not _beside(first, second):
        return None
    return (parts == 1, parts == 2) if first[0] > second[0] else (parts == 2, parts == 1)


def _beside(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two points (LPS mm) differ most from left to right."""
    return int(np.abs(a - b).argmax()) == 0 and bool(a[0] != b[0])


def _centre(mask: sitk.Image) -> np.ndarray:
    """Centre of gravity of a mask, LPS mm."""
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(mask)
    return np.array(shapes.GetCentroid(1))


def _distance(seed: sitk.Image) -> sitk.Image:
    """Distance to a mask in mm, negative inside."""
    return sitk.SignedMaurerDistanceMap(seed, squaredDistance=False, useImageSpacing=True)
