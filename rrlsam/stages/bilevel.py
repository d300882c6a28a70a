"""Bi-JROS's bi-level view of registration and segmentation: an ablation, not a part of the method."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rrlsam.losses.segmentation import cross_entropy, dice_loss

_SMALLEST_NORM = 1e-12


def response_of_segmentation(
    log_probabilities: Float[Tensor, "b k z y x"],
    pseudo_label: tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"]],
    decoder: Iterable[nn.Parameter],
) -> Float[Tensor, ""]:
    """What the registration's gradient lacks if the segmentation is held fixed: its answer to other pseudo labels.

    Registration (w, loss R) is the upper level, the segmentation decoder (theta, loss S) the lower one. The
    hyper-gradient is grad_w R - grad_theta R [grad^2_theta S]^-1 grad^2_(theta w) S. With S's second derivatives taken
    to be outer products of its first ones it is grad_w (R - c S), c = <grad_theta R, grad_theta S> / |grad_theta S|^2.
    This returns -c S, differentiable in the pseudo label alone. (Bi-JROS, CVPR 2024, and its authors' code.)
    """
    label, weight = pseudo_label
    theta = list(decoder)
    upper = dice_loss(log_probabilities.exp(), label.detach(), weight.detach())
    lower = fit_to_label(log_probabilities, label.detach(), weight.detach())
    upward, downward = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True)])
        for loss in (upper, lower)
    )
    c = upward.dot(downward) / downward.dot(downward).clamp(min=_SMALLEST_NORM)
    return -c * fit_to_label(log_probabilities.detach(), label, weight)


def fit_to_label(
    log_probabilities: Float[Tensor, "b k z y x"],
    label: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"],
) -> Float[Tensor, ""]:
    """Soft Dice plus cross-entropy."""
    return dice_loss(log_probabilities.exp(), label, weight) + cross_entropy(log_probabilities, label, weight)
