"""Linear filters that act on each axis alone: one product with a matrix an axis, forwards and backwards.

On a CPU these are much faster than pooling, convolution and interpolation of volumes.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.geometry import Vector3

_REACH = 4.0
"""Gaussians end there, in standard deviations: what lies beyond would be denormal numbers, which are slow."""


def separable(
    volume: Float[Tensor, "b c z y x"],
    along_z: Float[Tensor, "z2 z"],
    along_y: Float[Tensor, "y2 y"],
    along_x: Float[Tensor, "x2 x"],
) -> Float[Tensor, "b c z2 y2 x2"]:
    """A volume with each axis multiplied by its matrix; in the volume's own precision."""
    b, c, z, _, _ = volume.shape
    with torch.autocast(volume.device.type, enabled=False):
        planes = torch.matmul(along_y, volume @ along_x.T)
        _, _, _, y, x = planes.shape
        return torch.matmul(along_z, planes.reshape(b, c, z, y * x)).reshape(b, c, len(along_z), y, x)


def windows(n: int, width: int, stride: int, like: Tensor) -> Float[Tensor, "m n"]:
    """Row i averages the voxels within half a width of the middle of voxels stride * i to stride * (i + 1) - 1.

    At the border, windows hold only voxels that exist.
    """
    index = torch.arange(n, device=like.device)
    centre = torch.arange(0, n - stride + 1, stride, device=like.device) + (stride - 1) / 2
    near = ((index - centre[:, None]).abs() <= width / 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def gaussian(n: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """Row i averages with Gaussian weights around voxel i; normalised at the border too."""
    index = torch.arange(n, device=like.device, dtype=like.dtype)
    distance = (index[:, None] - index).abs()
    weight = torch.exp(-0.5 * (distance / sigma).square()) * (distance <= max(1.0, round(_REACH * sigma)))
    return weight / weight.sum(1, keepdim=True)


def interpolation(n: int, source: int, like: Tensor) -> Float[Tensor, "n source"]:
    """Linear interpolation from `source` to n voxels over the same edges (align_corners=False)."""
    unit = torch.eye(source, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, size=n, mode="linear", align_corners=False)[0].T


def smoothed(
    volume: Float[Tensor, "b c z y x"], sigma: float, shares: Vector3 = (1.0, 1.0, 1.0)
) -> Float[Tensor, "b c z y x"]:
    """A volume under a Gaussian of that standard deviation, in voxels; `shares`: the part of it that an axis gets."""
    z, y, x = (gaussian(n, sigma * share, volume) for n, share in zip(volume.shape[2:], shares, strict=True))
    return separable(volume, z, y, x)
