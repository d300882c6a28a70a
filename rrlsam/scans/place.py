"""Where a scan may lie, whatever its file's format."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError

_SMALLEST_VOXEL_MM, _LARGEST_VOXEL_MM = 1e-6, 1e4
_FARTHEST_MM = 1e7
_LARGEST_SHEAR = 1e-3
SHEARED = "the directions of its axes are not at right angles (a sheared grid); resample it to a straight grid"


def require_place(path: Path, image: sitk.Image) -> None:
    """BadInputError for a grid that no unit of length explains."""
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    if not all(_SMALLEST_VOXEL_MM <= edge <= _LARGEST_VOXEL_MM for edge in spacing[:3]):
        raise BadInputError(f"{path}: voxel spacing {spacing} mm cannot be; mend the header")
    axes = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    if not np.isfinite(axes).all():
        raise BadInputError(f"{path}: its directions are no numbers; mend the header")
    if not np.allclose(axes.T @ axes, np.eye(len(axes)), atol=_LARGEST_SHEAR):
        raise BadInputError(f"{path}: {SHEARED}")
    if not all(abs(place) <= _FARTHEST_MM for place in origin[:3]):
        raise BadInputError(f"{path}: origin {origin} mm cannot be; mend the header")
