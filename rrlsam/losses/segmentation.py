"""How well class probabilities agree with (soft) labels."""

from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-5


def dice_loss(
    probabilities: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
) -> Float[Tensor, ""]:
    """1 - mean soft Dice over all base classes, background included, in [0, 1].

    A class absent from probabilities and target does not exist here and counts for nothing. `weight`: 0 where no label
    is known (ignore label).
    """
    probabilities, target = probabilities.float(), target.float()
    if weight is not None:
        probabilities, target = probabilities * weight, target * weight
    overlap = (probabilities * target).sum((0, 2, 3, 4))
    total = (probabilities + target).sum((0, 2, 3, 4))
    dice = (2 * overlap + _EPSILON) / (total + _EPSILON)
    return 1 - dice.mean()


def cross_entropy(
    logits: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy against soft labels, in nats."""
    loss = -(target.float() * logits.float().log_softmax(1)).sum(1, keepdim=True)
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp(min=1.0)
