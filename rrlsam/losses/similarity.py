"""How alike two images are."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.nets.separable import separable, windows

WINDOW = 9
_FAINT = 1e-7
"""The correlation of a window is cov^2 / (var_moved * var_fixed + _FAINT * v^2), v the fixed channel's variance over
the whole image: no window without contrast divides by 0."""
_LEAST_VARIANCE = 1e-10
"""A channel that varies less is taken for a constant one: beyond that lies rounding."""
_CONTRAST = 1e-3
"""A window counts if the fixed channel varies in it by this share of its overall variance; air tells nothing."""


class LocalCorrelation:
    """Mean local squared correlation in [0, 1] with one fixed image (Avants 2008); computed in float32.

    Only windows in which the fixed image has contrast count: how strongly a field is pulled does not depend on how much
    air surrounds the body. `weight`: how much each voxel's window counts, such as 1 inside both fields of view.
    Windows are cubes of `window` voxels an axis, `stride` voxels apart. Channels count alike, whatever their units.
    """

    def __init__(
        self,
        fixed: Float[Tensor, "b c z y x"],
        weight: Float[Tensor, "b 1 z y x"] | None = None,
        window: int = WINDOW,
        stride: int = 1,
    ) -> None:
        self._centre = fixed.float().mean((0, 2, 3, 4), keepdim=True)  # a large offset would cost digits of variances
        self._fixed = fixed.float() - self._centre
        self._windows = [windows(n, window, stride, self._fixed) for n in fixed.shape[2:]]
        self._mean, mean_square = self._average(torch.cat([self._fixed, self._fixed.square()], dim=1)).chunk(2, dim=1)
        self._variance = (mean_square - self._mean.square()).clamp(min=0)
        overall = self._fixed.var((0, 2, 3, 4), keepdim=True).clamp(min=_LEAST_VARIANCE)
        self._faint = _FAINT * overall.square()
        counted = (self._variance > _CONTRAST * overall).float()
        self._counted = counted if weight is None else counted * F.avg_pool3d(weight, stride)  # at windows' middles
        self.n_counted = self._counted.sum().clamp(min=1.0)
        """Number of windows that count."""

    def __call__(self, moved: Float[Tensor, "b c z y x"]) -> Float[Tensor, ""]:
        """The similarity of an image on the same grid."""
        moved = moved.float() - self._centre
        stacked = torch.cat([moved, moved * moved, moved * self._fixed], dim=1)
        mean, mean_square, mean_product = self._average(stacked).chunk(3, dim=1)
        covariance = mean_product - mean * self._mean
        variance = (mean_square - mean * mean).clamp(min=0)
        correlation = covariance.square() / (variance * self._variance + self._faint)
        return (correlation * self._counted).sum() / self.n_counted

    def _average(self, volume: Float[Tensor, "b c2 z y x"]) -> Float[Tensor, "b c2 z2 y2 x2"]:
        return separable(volume, *self._windows)


def lncc(
    moved: Float[Tensor, "b c z y x"],
    fixed: Float[Tensor, "b c z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
) -> Float[Tensor, ""]:
    """`LocalCorrelation` of two images, in the windows of the paper's authors."""
    return LocalCorrelation(fixed, weight)(moved)


class SquaredDifference:
    """Similarity by features: minus their mean squared difference where the weight is not 0."""

    def __init__(self, fixed: Float[Tensor, "b c z y x"], weight: Float[Tensor, "b 1 z y x"]) -> None:
        self._fixed, self._weight = fixed, weight
        self.n_counted = weight.sum().clamp(min=1.0)

    def __call__(self, moved: Float[Tensor, "b c z y x"]) -> Float[Tensor, ""]:
        """The similarity of features on the same grid."""
        return -((moved - self._fixed).square().mean(1, keepdim=True) * self._weight).sum() / self.n_counted


class ImagesAndLabels:
    """Local correlation of images minus the squared difference of labels, which are the channels behind the images.

    `label_weight`: of a voxel's squared difference, beside a window's correlation.
    """

    def __init__(
        self,
        fixed: Float[Tensor, "b c z y x"],
        weight: Float[Tensor, "b 1 z y x"],
        images: int,
        label_weight: float,
        window: int = WINDOW,
        stride: int = 1,
    ) -> None:
        self._n = images
        self._images = LocalCorrelation(fixed[:, :images], weight, window, stride)
        self._labels = SquaredDifference(fixed[:, images:], weight)
        self.n_counted = self._images.n_counted
        coded = fixed.shape[1] - images
        self._share = label_weight * coded * self._labels.n_counted / self.n_counted

    def __call__(self, moved: Float[Tensor, "b c z y x"]) -> Float[Tensor, ""]:
        """The similarity of images and labels on the same grid."""
        return self._images(moved[:, : self._n]) + self._share * self._labels(moved[:, self._n :])


def mind(image: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k z y x"]:
    """Modality-independent neighbourhood descriptors, 12 a channel, in [0, 1] (MIND-SSC, Heinrich et al., MICCAI 2013).

    Each compares two of a voxel's six neighbours by the mean squared difference of 3-voxel patches around them.
    """
    padded = F.pad(image, [1] * 6, mode="replicate")
    z, y, x = (slice(1, n - 1) for n in padded.shape[2:])
    steps = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)]
    neighbours = [padded.roll(step, (2, 3, 4))[..., z, y, x] for step in steps]
    pairs = [(a, b) for b in range(6) for a in range(b) if a // 2 != b // 2]
    patches = [windows(n, 3, 1, image) for n in image.shape[2:]]
    distances = [separable((neighbours[a] - neighbours[b]).square(), *patches) for a, b in pairs]
    stacked = torch.stack(distances)
    stacked = stacked - stacked.amin(0)
    spread = stacked.mean(0)
    typical = spread.mean().clamp(min=1e-12)
    spread = spread.clamp(0.001 * typical, 1000 * typical)
    return torch.cat(list((-stacked / spread).exp()), dim=1)
