"""The registration part of a step, shared by stage 1b and stage 2."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rrlsam.data.atlas import AtlasView, split_ignore
from rrlsam.data.batches import Batch
from rrlsam.losses.segmentation import dice_loss
from rrlsam.losses.similarity import lncc
from rrlsam.losses.smoothness import diffusion
from rrlsam.nets.build import Networks
from rrlsam.nets.registration import integrate, resize_field, warp

SIMILARITY_WEIGHT = 10.0
SMOOTHNESS_WEIGHT = 15.0
AGREEMENT_WEIGHT = 1.0


@dataclass(frozen=True)
class Registered:
    """The atlas brought to a batch of scans."""

    pyramid: list[Tensor]
    """The medical encoder's features of the scans, finest first."""
    velocity: Float[Tensor, "b 3 zl yl xl"]
    flow: Float[Tensor, "b 3 zl yl xl"]
    """The velocity integrated: displacement in voxels of its own grid, component order x, y, z; pulls the atlas."""


def register(nets: Networks, atlas: AtlasView, batch: Batch) -> Registered:
    """Register the atlas to every scan of a batch."""
    n = len(batch.cases)
    pyramid = nets.medical_encoder(batch.whole.image)
    atlas_pyramid = [level.expand(n, *level.shape[1:]) for level in nets.medical_encoder(atlas.image)]
    velocity = nets.registration_decoder(atlas_pyramid, pyramid)
    return Registered(pyramid, velocity, integrate(velocity))


def warped_label(
    registered: Registered, atlas: AtlasView
) -> tuple[Float[Tensor, "b k z y x"], Float[Tensor, "b 1 z y x"] | None]:
    """The atlas's one-hot base classes on the registration grid, warped with gradient to the field.

    And the weight of each voxel: 0 where the atlas's ignore label came to lie; None without ignore label.
    """
    displacement = resize_field(registered.flow, atlas.label.shape[2:])
    warped = warp(atlas.label.expand(len(displacement), *atlas.label.shape[1:]), displacement)
    return split_ignore(warped, atlas.has_ignore)


def registration_terms(
    registered: Registered,
    atlas: AtlasView,
    batch: Batch,
    pseudo_label: tuple[Float[Tensor, "b k z2 y2 x2"], Float[Tensor, "b 1 z2 y2 x2"] | None],
    segmentation: Float[Tensor, "b k z2 y2 x2"],
) -> dict[str, Tensor]:
    """L_reg: similarity, smoothness, and the agreement of the warped label with class probabilities (held fixed)."""
    scan = batch.compared
    if scan is None:
        raise ValueError("the batch holds nothing to compare the warped atlas with")
    displacement = resize_field(registered.flow, scan.clean.shape[2:])
    image = warp(atlas.compared.expand(len(displacement), *atlas.compared.shape[1:]), displacement)
    similarity = lncc(image, scan.clean, scan.inside)
    agreement = dice_loss(segmentation.detach(), *pseudo_label)
    return {
        "similarity": SIMILARITY_WEIGHT * (1.0 - similarity),
        "smoothness": SMOOTHNESS_WEIGHT * diffusion(registered.velocity),
        "agreement": AGREEMENT_WEIGHT * agreement,
    }
