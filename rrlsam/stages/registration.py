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
from rrlsam.nets.registration import velocity_to_displacement, warp

SIMILARITY_WEIGHT = 10.0
SMOOTHNESS_WEIGHT = 15.0
AGREEMENT_WEIGHT = 1.0


@dataclass(frozen=True)
class Registered:
    """The atlas brought to a batch of scans."""

    pyramid: list[Tensor]
    """The medical encoder's features of the scans, finest first."""
    velocity: Float[Tensor, "b 3 zl yl xl"]
    displacement: Float[Tensor, "b 3 z y x"]
    """Voxels of the registration grid, component order x, y, z; pulls the atlas."""
    image: Float[Tensor, "b c z y x"]
    """The atlas's image warped to the scans."""
    label: Float[Tensor, "b k z y x"]
    """Its one-hot base classes warped, with gradient to the field."""
    weight: Float[Tensor, "b 1 z y x"] | None
    """0 where the atlas's ignore label came to lie."""


def register(nets: Networks, atlas: AtlasView, batch: Batch) -> Registered:
    """Register the atlas to every scan of a batch."""
    n = len(batch.cases)
    pyramid = nets.medical_encoder(batch.whole.image)
    atlas_pyramid = [level.expand(n, *level.shape[1:]) for level in nets.medical_encoder(atlas.image)]
    velocity = nets.registration_decoder(atlas_pyramid, pyramid)
    displacement = velocity_to_displacement(velocity, batch.whole.image.shape[2:])
    image = warp(atlas.image.expand(n, *atlas.image.shape[1:]), displacement)
    warped = warp(atlas.label.expand(n, *atlas.label.shape[1:]), displacement)
    label, weight = split_ignore(warped, atlas.has_ignore)
    return Registered(pyramid, velocity, displacement, image, label, weight)


def registration_terms(
    registered: Registered,
    batch: Batch,
    pseudo_label: tuple[Float[Tensor, "b k z2 y2 x2"], Float[Tensor, "b 1 z2 y2 x2"] | None],
    segmentation: Float[Tensor, "b k z2 y2 x2"],
) -> dict[str, Tensor]:
    """L_reg: similarity, smoothness, and the agreement of the warped label with class probabilities (held fixed)."""
    similarity = lncc(registered.image, batch.whole.clean, batch.whole.inside)
    agreement = dice_loss(segmentation.detach(), *pseudo_label)
    return {
        "similarity": SIMILARITY_WEIGHT * (1.0 - similarity),
        "smoothness": SMOOTHNESS_WEIGHT * diffusion(registered.velocity),
        "agreement": AGREEMENT_WEIGHT * agreement,
    }
