"""Pseudo labels: the atlas's label, warped by the registration network, stands in for the scan's own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.atlas import AtlasView, split_ignore
from rrlsam.losses.segmentation import cross_entropy, dice_loss
from rrlsam.nets.registration import displacement_at, identity_grid, integrate, sample, voxels_per_voxel


def segmentation_loss(
    log_probabilities: Float[Tensor, "b k z y x"],
    pseudo_label: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None,
) -> Float[Tensor, ""]:
    """How well class probabilities fit a pseudo label, through which no gradient flows."""
    return fit_to_label(log_probabilities, pseudo_label.detach(), None if weight is None else weight.detach())


def fit_to_label(
    log_probabilities: Float[Tensor, "b k z y x"],
    label: Float[Tensor, "b k z y x"],
    weight: Float[Tensor, "b 1 z y x"] | None,
) -> Float[Tensor, ""]:
    """Soft Dice plus cross-entropy."""
    return dice_loss(log_probabilities.exp(), label, weight) + cross_entropy(log_probabilities, label, weight)


def label_at(
    atlas: AtlasView, points: Float[Tensor, "b 3 z y x"]
) -> tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"] | None]:
    """The fine atlas label at voxel coordinates (x, y, z): one-hot base classes and the weight of each voxel."""
    fine = atlas.fine_label
    return split_ignore(sample(fine.expand(len(points), *fine.shape[1:]), points), atlas.has_ignore)


def warped_atlas_label(
    atlas: AtlasView, velocity: Float[Tensor, "b 3 zl yl xl"], start: Sequence[int], shape: Sequence[int]
) -> tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"] | None]:
    """The fine atlas label in a box of the fine grid, warped by the upsampled, re-integrated velocity.

    Returns one-hot base classes and the weight of each voxel (None without ignore label); both keep the gradient.
    """
    fine = atlas.fine_label
    displacement = displacement_in_box(velocity, fine.shape[2:], start, shape)
    return label_at(atlas, _box_grid(start, shape, displacement) + displacement)


def displacement_in_box(
    velocity: Float[Tensor, "b 3 zl yl xl"], fine: Sequence[int], start: Sequence[int], shape: Sequence[int]
) -> Float[Tensor, "b 3 z y x"]:
    """Displacement in voxels of the fine grid, for a box of it, from a velocity over the same field of view.

    No path of the flow is longer than the fastest velocity, so integrating the box plus that margin is exact.
    """
    scale = voxels_per_voxel(velocity.shape[2:], fine, velocity)
    fastest = (velocity.detach() * scale).abs().amax((0, 2, 3, 4)).ceil().int().tolist()[::-1]
    low = [max(0, a - m - 1) for a, m in zip(start, fastest, strict=True)]
    high = [min(f, a + n + m + 1) for f, a, n, m in zip(fine, start, shape, fastest, strict=True)]
    points = _box_grid(low, [h - a for a, h in zip(low, high, strict=True)], velocity)
    boxed = displacement_at(velocity, points.expand(len(velocity), -1, -1, -1, -1), fine)
    cut = tuple(slice(a - b, a - b + n) for a, b, n in zip(start, low, shape, strict=True))
    return integrate(boxed)[(..., *cut)]


def _box_grid(start: Sequence[int], shape: Sequence[int], like: Tensor) -> Float[Tensor, "1 3 z y x"]:
    offset = torch.tensor(list(start)[::-1], device=like.device, dtype=torch.float32)
    return identity_grid(shape, like) + offset.view(1, 3, 1, 1, 1)
