"""Intensities from one grid to another of the same field of view, by nnU-Net's rules with ITK's interpolators."""

import numpy as np
import SimpleITK as sitk

from rrlsam.geometry import Geometry, place, to_sitk

_COARSE = 3.0
"""Ratio of spacings from which the coarse axis is treated apart."""
_SMOOTH_FROM = 1.25
"""Axes that become this much coarser are smoothed first."""
_SPLINE_MIN_VOXELS = 4


def resample(array: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """(c, z, y, x) from grid to grid: cubic, but nearest along one coarse axis; never beyond the range of `array`."""
    return np.stack([_resample_channel(channel, source, target) for channel in array])


def coarse_axis(source: Geometry, target: Geometry) -> int | None:
    """The one axis (0 = z, 1 = y, 2 = x) with far coarser voxels in either grid, or None."""
    for grid in (source, target):
        spacing = np.array(grid.spacing_mm)
        if spacing.max() / spacing.min() > _COARSE:
            coarse = np.flatnonzero(spacing > 0.999 * spacing.max())
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def smooth_and_sample(image: sitk.Image, target: Geometry, interpolator: int) -> sitk.Image:
    """An image on another grid, smoothed first along axes that become coarser; the border value goes on outside."""
    ratio = np.array(target.spacing_mm)[::-1] / np.array(image.GetSpacing())
    variance = np.where(ratio > _SMOOTH_FROM, ((ratio - 1) / 2) ** 2, 0.0)
    if variance.any():
        image = sitk.DiscreteGaussian(image, variance.tolist(), 64, 0.01, False)
    sampler = sitk.ResampleImageFilter()
    sampler.SetReferenceImage(empty_image(target))
    sampler.SetInterpolator(interpolator)
    sampler.SetUseNearestNeighborExtrapolator(True)
    sampler.SetOutputPixelType(sitk.sitkFloat32)
    return sampler.Execute(image)


def _resample_channel(channel: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    image = to_sitk(channel, source)
    smooth = sitk.sitkBSpline3 if min(channel.shape) >= _SPLINE_MIN_VOXELS else sitk.sitkLinear
    axis = coarse_axis(source, target)
    if axis is None:
        image = smooth_and_sample(image, target, smooth)
    else:
        in_plane = list(target.spacing_mm)
        in_plane[axis] = source.spacing_mm[axis]
        image = smooth_and_sample(image, source.with_spacing(in_plane), smooth)
        image = smooth_and_sample(image, target, sitk.sitkNearestNeighbor)
    return np.clip(sitk.GetArrayFromImage(image), channel.min(), channel.max())


def empty_image(grid: Geometry) -> sitk.Image:
    """An image of zeros on a grid."""
    z, y, x = grid.shape
    return place(sitk.Image(x, y, z, sitk.sitkUInt8), grid)
