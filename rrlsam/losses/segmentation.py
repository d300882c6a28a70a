"""How well class probabilities agree with (soft) labels. Sums over voxels are inner products: nothing is stored."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-5


def dice_loss(
    probabilities: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"],
) -> Float[Tensor, ""]:
    """1 - mean soft Dice over all base classes, background included, in [0, 1].

    A class absent from probabilities and target counts as a perfect match. `weight`: 0 where no label is known.
    """
    counted = target * weight
    overlap = _inner(probabilities, counted)
    total = (probabilities * weight).sum((0, 2, 3, 4)) + counted.sum((0, 2, 3, 4))
    dice = (2 * overlap + _EPSILON) / (total + _EPSILON)
    return 1 - dice.mean()


def cross_entropy(
    log_probabilities: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy against soft labels, in nats a voxel."""
    return -_inner(log_probabilities, target * weight).sum() / weight.sum().clamp(min=1.0)


def _inner(a: Float[Tensor, "b k *space"], b: Float[Tensor, "b k *space"]) -> Float[Tensor, " k"]:
    """Sum of a * b over batch and voxels, class by class, in float32 whatever the networks compute in."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a.float().flatten(2), b.float().flatten(2)).sum(0)


def _weighted_sum(p: Float[Tensor, "b k n"], weight: Float[Tensor, "b 1 n"]) -> Float[Tensor, " k"]:
    """`_inner` with one weight for all classes: a matrix product, which copies the weight for none of them."""
    with torch.autocast(p.device.type, enabled=False):
        return torch.matmul(p, weight.mT).sum((0, 2))


def dice_and_cross_entropy(
    logits: Float[Tensor, "b k z y x"],
    target: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "b k z y x"]]:
    """`dice_loss` plus `cross_entropy` of class logits against a fixed target, and the probabilities (no gradient).

    What they would give by themselves, but the gradient is written out: a third of the time with many classes.
    `target`: sums to 1 over the classes of every voxel. `weight`: 0 where no label is known.
    """
    return _DiceAndCrossEntropy.apply(logits, target, weight)  # pyright: ignore[reportReturnType]


class _DiceAndCrossEntropy(torch.autograd.Function):
    """dL/dz_k = w [(p_k - t_k) / N + p_k (G_k - sum_j p_j G_j)] with p = softmax(z), target t, weight w, N = sum(w).

    G_k = a_k t_k + b_k is Dice's slope in p_k: Dice_k = (2 I + e) / (S + e), I = sum(w p t), S = sum(w (p + t)).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        z, t = logits.float().flatten(2), target.float().flatten(2)
        w, p, k = weight.float().flatten(2), z.softmax(1), z.shape[1]
        share, weighted = 1 / w.sum().clamp(min=1.0), t * w
        normaliser = z.logsumexp(1, keepdim=True)
        entropy = ((normaliser * w).sum() - _inner(z, weighted).sum()) * share
        sums = _weighted_sum(p, w) + weighted.sum((0, 2))
        numerator, denominator = 2 * _inner(p, weighted) + _EPSILON, sums + _EPSILON
        ctx.save_for_backward(p, t, w, share, -2 / (k * denominator), numerator / (k * denominator.square()))
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        probabilities = p.view(logits.shape)
        ctx.mark_non_differentiable(probabilities)
        return 1 - (numerator / denominator).mean() + entropy, probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p, t, w, share, a, b = ctx.saved_tensors
        a, b = a.view(1, -1, 1), b.view(1, -1, 1)
        slope = torch.addcmul(b, a, t)
        slope = slope.sub_((slope * p).sum(1, keepdim=True)).mul_(p)
        slope = slope.addcmul_(p, share).addcmul_(t, share, value=-1)
        return slope.mul_(w).mul_(gradients[0]).view(ctx.shape).to(ctx.dtype), None, None
