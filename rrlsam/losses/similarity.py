"""How alike two images are."""

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 9
_EPSILON = 1e-5
_CONTRAST = 1e-3
"""A window counts if the fixed image varies in it by this share of its overall variance; air tells nothing."""


def lncc(
    moved: Float[Tensor, "b c z y x"],
    fixed: Float[Tensor, "b c z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
    window: int = WINDOW,
) -> Float[Tensor, ""]:
    """Mean local squared correlation in [0, 1] over cubic windows (Avants 2008); computed in float32.

    Only windows in which the fixed image has contrast count: how strongly a field is pulled does not depend on how much
    air surrounds the body. `weight`: how much each voxel's window counts, such as 1 inside both fields of view.
    """
    moved, fixed = moved.float(), fixed.float()
    stacked = torch.cat([moved, fixed, moved * moved, fixed * fixed, moved * fixed], dim=1)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = box_mean(stacked, window).chunk(5, dim=1)
    covariance = mean_ab - mean_a * mean_b
    variance_a = (mean_aa - mean_a * mean_a).clamp(min=0)
    variance_b = (mean_bb - mean_b * mean_b).clamp(min=0)
    correlation = covariance.square() / (variance_a * variance_b + _EPSILON)
    counted = (variance_b > _CONTRAST * fixed.var()).float()
    if weight is not None:
        counted = counted * weight
    return (correlation * counted).sum() / counted.sum().clamp(min=1.0)


def box_mean(volume: Float[Tensor, "b c z y x"], window: int) -> Float[Tensor, "b c z y x"]:
    """Mean over cubic windows; at the border they hold only voxels that exist.

    One product with a banded matrix an axis: over ten times as fast on a CPU as pooling, forwards and backwards.
    """
    b, c, z, y, x = volume.shape
    along_z, along_y, along_x = (_band(n, window, volume) for n in (z, y, x))
    with torch.autocast(volume.device.type, enabled=False):  # variances are small differences: all digits are needed
        volume = torch.matmul(along_y, volume @ along_x.T)
        return torch.matmul(along_z, volume.reshape(b, c, z, y * x)).reshape(b, c, z, y, x)


def _band(n: int, window: int, like: Tensor) -> Float[Tensor, "n n"]:
    """Row i averages the voxels within half a window of i."""
    index = torch.arange(n, device=like.device)
    near = ((index[:, None] - index).abs() <= window // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)
