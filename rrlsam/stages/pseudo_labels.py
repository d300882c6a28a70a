"""Pseudo labels: the atlas's label, warped by a scan's registration, stands in for the scan's own."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.atlas import AtlasView, split_ignore
from rrlsam.data.batches import Batch
from rrlsam.losses.segmentation import dice_loss
from rrlsam.nets.displacement import displacement_at, identity_grid, sample, voxels_per_voxel
from rrlsam.stages.registration import Registered

AGREEMENT_WEIGHT = 1.0
AGREEMENT_EVERY = 2
"""Of so many voxels on each axis one is looked at: warping all classes with gradient costs as much as a network."""


def pseudo_label(
    atlas: AtlasView, batch: Batch, places: Float[Tensor, "b 3 z y x"]
) -> tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"]]:
    """The atlas's label as the refined field brings it to the patch; `places`: where the network's does, in its stead.

    A scan that has a label of its own keeps that one. One-hot base classes and the weight of each voxel: 0 where the
    ignore label came to lie and beyond the scan's field of view.
    """
    points = places if batch.atlas_points is None else batch.atlas_points
    with torch.no_grad():
        labels = [
            _warped_label(atlas, batch, points, index) if truth is None else truth[None]
            for index, truth in enumerate(batch.truth or (None,) * len(points))
        ]
        label, known = split_ignore(torch.cat(labels), atlas.has_ignore)
        return label, _weight(batch, known)


def _weight(
    batch: Batch, known: Float[Tensor, "b 1 z y x"] | None, look: Callable[[Tensor], Tensor] = lambda volume: volume
) -> Float[Tensor, "b 1 z y x"]:
    """What voxels of the patch count, `known` of their label: nothing beyond the scan's field of view."""
    if batch.seen is None:
        raise ValueError("the batch does not tell where its scans end")
    seen = look(batch.seen)
    return seen if known is None else seen * known


def _warped_label(
    atlas: AtlasView, batch: Batch, points: Float[Tensor, "b 3 z y x"], index: int
) -> Float[Tensor, "1 k z y x"]:
    """The atlas's label on one scan; the mean with what the scan's mirror image got, if it was registered too."""
    label = sample(atlas.fine_label, points[index, None])
    if batch.reflected_points is None:
        return label
    return (label + sample(atlas.fine_label, batch.reflected_points[index, None])[:, atlas.swapped]) / 2


def class_prior(atlas: AtlasView, places: Float[Tensor, "b 3 z y x"]) -> Float[Tensor, "b k z y x"]:
    """What a registration says about the class of voxels that read the fine atlas there: log probabilities.

    They are added to the decoders' logits, so that these learn what the image adds to the registration. No gradient.
    """
    with torch.no_grad():
        return sample(atlas.prior.expand(len(places), *atlas.prior.shape[1:]), places)


def agreement(
    atlas: AtlasView, batch: Batch, places: Float[Tensor, "b 3 z y x"], segmentation: Float[Tensor, "b k z y x"]
) -> Float[Tensor, ""]:
    """Dice loss of the label that the network warps against class probabilities, held fixed; a part of L_reg.

    Where a scan has a label of its own, that label stands in for the probabilities.
    """
    known = segmentation.detach()
    if batch.truth:
        known = torch.stack(
            [guess if truth is None else _known(truth, guess) for truth, guess in zip(batch.truth, known, strict=True)]
        )
    return AGREEMENT_WEIGHT * dice_loss(every_second(known), *warped_for_agreement(atlas, batch, places))


def warped_for_agreement(
    atlas: AtlasView, batch: Batch, places: Float[Tensor, "b 3 z y x"]
) -> tuple[Float[Tensor, "b k z2 y2 x2"], Float[Tensor, "b 1 z2 y2 x2"]]:
    """The label that the network warps, with its gradient, at every second voxel, and what each of these counts."""
    label, known = label_at(atlas, every_second(places))
    return label, _weight(batch, known, every_second)


def _known(truth: Float[Tensor, "k2 z y x"], guess: Float[Tensor, "k z y x"]) -> Float[Tensor, "k z y x"]:
    """A true label; the guess where nobody labelled."""
    n = len(guess)
    return truth[:n] + truth[n:].sum(0, keepdim=True) * guess


def every_second(volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z2 y2 x2"]:
    """The voxels at which the agreement is looked at."""
    return volume[..., ::AGREEMENT_EVERY, ::AGREEMENT_EVERY, ::AGREEMENT_EVERY]


def label_at(
    atlas: AtlasView, points: Float[Tensor, "b 3 z y x"]
) -> tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"] | None]:
    """The fine atlas label at voxel coordinates (x, y, z): one-hot base classes and the weight of each voxel."""
    fine = atlas.fine_label
    return split_ignore(sample(fine.expand(len(points), *fine.shape[1:]), points), atlas.has_ignore)


def places_in_atlas(registered: Registered, atlas: AtlasView, batch: Batch) -> Float[Tensor, "b 3 z y x"]:
    """Where the network's field reads the fine atlas, for every voxel of the patch: voxel coordinates (x, y, z)."""
    fine, patch = atlas.fine_label.shape[2:], batch.patch
    points = identity_grid(patch.image.shape[2:], registered.flow)
    if patch is batch.whole:  # it covers the fine grid, in voxels of its own
        points = (points + 0.5) * voxels_per_voxel(patch.image.shape[2:], fine, points) - 0.5
    else:
        points = points + points.new_tensor(patch.start[::-1]).view(1, 3, 1, 1, 1)
    points = points.expand(len(registered.flow), *points.shape[1:])
    return points + displacement_at(registered.flow, points, fine)
