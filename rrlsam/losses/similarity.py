"""How alike two images are."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

WINDOW = 9
_EPSILON = 1e-5


def lncc(
    a: Float[Tensor, "b c z y x"],
    b: Float[Tensor, "b c z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
    window: int = WINDOW,
) -> Float[Tensor, ""]:
    """Mean local squared correlation in [0, 1] over cubic windows (Avants 2008); computed in float32.

    `weight`: how much each voxel's window counts, such as 1 inside both fields of view.
    """
    a, b = a.float(), b.float()
    size = [min(window, n - (n + 1) % 2) for n in a.shape[2:]]
    stacked = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    means = _box_mean(stacked, size).chunk(5, dim=1)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = means
    covariance = mean_ab - mean_a * mean_b
    variance_a = (mean_aa - mean_a * mean_a).clamp(min=0)
    variance_b = (mean_bb - mean_b * mean_b).clamp(min=0)
    correlation = covariance.square() / (variance_a * variance_b + _EPSILON)
    if weight is None:
        return correlation.mean()
    return (correlation * weight).sum() / (weight.sum() * a.shape[1]).clamp(min=1.0)


def _box_mean(volume: Float[Tensor, "b c z y x"], size: list[int]) -> Float[Tensor, "b c z y x"]:
    """Separable box filter; windows at the border hold only voxels that exist."""
    for axis, n in enumerate(size):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = n, n // 2
        volume = F.avg_pool3d(volume, kernel, 1, padding, count_include_pad=False)
    return volume
