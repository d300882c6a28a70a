"""Where a scan may lie, whatever its file's format."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError

_SMALLEST_VOXEL_MM, _LARGEST_VOXEL_MM = 1e-6, 1e4
_FARTHEST_MM = 1e7


def require_place(path: Path, image: sitk.Image) -> None:
    """BadInputError for a grid that no unit of length explains."""
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    if not all(_SMALLEST_VOXEL_MM <= edge <= _LARGEST_VOXEL_MM for edge in spacing[:3]):
        raise BadInputError(f"{path}: voxel spacing {spacing} mm cannot be; mend the header")
    if not np.isfinite(image.GetDirection()).all():
        raise BadInputError(f"{path}: its directions are no numbers; mend the header")
    if not all(abs(place) <= _FARTHEST_MM for place in origin[:3]):
        raise BadInputError(f"{path}: origin {origin} mm cannot be; mend the header")
