"""The registration part of a step, shared by stage 1b and stage 2."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch
from rrlsam.losses.similarity import lncc
from rrlsam.losses.smoothness import diffusion
from rrlsam.nets.build import Networks
from rrlsam.nets.displacement import integrate, resize_field, warp

SIMILARITY_WEIGHT = 10.0
SMOOTHNESS_WEIGHT = 15.0


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


def registration_terms(registered: Registered, atlas: AtlasView, batch: Batch) -> dict[str, Tensor]:
    """L_reg but for the agreement with the segmentation: similarity and smoothness."""
    scan = batch.compared
    if scan is None:
        raise ValueError("the batch holds nothing to compare the warped atlas with")
    displacement = resize_field(registered.flow, scan.clean.shape[2:])
    image = warp(atlas.compared.expand(len(displacement), *atlas.compared.shape[1:]), displacement)
    return {
        "similarity": SIMILARITY_WEIGHT * (1.0 - lncc(image, scan.clean, scan.inside)),
        "smoothness": SMOOTHNESS_WEIGHT * diffusion(registered.velocity),
    }
