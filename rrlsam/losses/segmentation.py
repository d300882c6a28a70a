"""How well class probabilities agree with (soft) labels. Sums over voxels are inner products: nothing is stored."""

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-5


def dice_loss(
    probabilities: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
) -> Float[Tensor, ""]:
    """1 - mean soft Dice over all base classes, background included, in [0, 1].

    A class absent from probabilities and target counts as a perfect match. `weight`: 0 where no label is known.
    """
    if weight is not None:
        probabilities, target = probabilities * weight, target * weight
    overlap = _inner(probabilities, target)
    total = probabilities.sum((0, 2, 3, 4)) + target.sum((0, 2, 3, 4))
    dice = (2 * overlap + _EPSILON) / (total + _EPSILON)
    return 1 - dice.mean()


def cross_entropy(
    log_probabilities: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy against soft labels, in nats a voxel."""
    if weight is not None:
        voxels = weight.sum().clamp(min=1.0)
        return -_inner(log_probabilities, target * weight).sum() / voxels
    return -_inner(log_probabilities, target).sum() / (target.numel() / target.shape[1])


def _inner(a: Float[Tensor, "b k z y x"], b: Float[Tensor, "b k z y x"]) -> Float[Tensor, " k"]:
    """Sum of a * b over batch and voxels, class by class, in float32."""
    return torch.linalg.vecdot(a.float().flatten(2), b.float().flatten(2)).sum(0)
