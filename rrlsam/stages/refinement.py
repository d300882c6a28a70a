"""Instance-wise refinement: the network's field is where the optimisation of one pair starts."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import View
from rrlsam.geometry import Size3
from rrlsam.losses.similarity import lncc
from rrlsam.losses.smoothness import diffusion
from rrlsam.nets.registration import velocity_to_displacement, warp
from rrlsam.stages.registration import SIMILARITY_WEIGHT, SMOOTHNESS_WEIGHT

LEARNING_RATE = 0.1
"""Of Adam, in voxels of the velocity's grid a step."""
COARSENESS = (4, 2, 1)
SMALLEST_EDGE = 24
"""Images are not made coarser than this many voxels an axis."""


def refine(
    velocity: Float[Tensor, "1 3 zl yl xl"], atlas: AtlasView, scan: View, iterations: int
) -> Float[Tensor, "1 3 zl yl xl"]:
    """Minimise the registration's own loss, similarity and smoothness, over one scan's velocity; coarse to fine.

    `scan`: un-augmented, on the grid of `atlas.compared`. `iterations`: Adam steps at each resolution of the images;
    the velocity stays on its grid, so it remains the field of a diffeomorphism. Deterministic.
    """
    refined = velocity.detach().float().clone()
    if iterations == 0:
        return refined
    with torch.enable_grad(), torch.autocast(velocity.device.type, enabled=False):
        refined.requires_grad_()
        for size in _resolutions(atlas.compared):
            moving, fixed, inside = (F.adaptive_avg_pool3d(v, size) for v in (atlas.compared, scan.clean, scan.inside))
            optimizer = torch.optim.Adam([refined], lr=LEARNING_RATE)
            for _ in range(iterations):
                optimizer.zero_grad(set_to_none=True)
                similarity = lncc(warp(moving, velocity_to_displacement(refined, size)), fixed, inside)
                loss = SIMILARITY_WEIGHT * (1.0 - similarity) + SMOOTHNESS_WEIGHT * diffusion(refined)
                loss.backward()
                optimizer.step()
    return refined.detach()


def _resolutions(image: Float[Tensor, "1 c z y x"]) -> Iterator[Size3]:
    """Image sizes, coarsest first, each once."""
    before = None
    for factor in COARSENESS:
        z, y, x = (max(n // factor, min(n, SMALLEST_EDGE)) for n in image.shape[2:])
        if (z, y, x) != before:
            before = (z, y, x)
            yield before
