"""Instance-wise refinement: the network's field is where the optimisation of one pair starts."""

import math
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch, View
from rrlsam.geometry import Size3
from rrlsam.losses.similarity import box_mean, lncc
from rrlsam.losses.smoothness import diffusion
from rrlsam.metrics import folded_voxels
from rrlsam.nets.build import Networks
from rrlsam.nets.registration import resize_field, velocity_to_displacement, warp
from rrlsam.stages.registration import SIMILARITY_WEIGHT, SMOOTHNESS_WEIGHT, register

LEARNING_RATE = 0.1
"""Of Adam, in voxels of the velocity's grid a step."""
COARSER = (2, 4)
UNFOLDING_REACHES = range(2, 14)
SMALLEST_EDGE = 24
"""Images are not made coarser than this many voxels an axis."""


def refined_velocity(
    nets: Networks, atlas: AtlasView, batch: Batch, iterations: int, *, autocast: AbstractContextManager[object]
) -> Float[Tensor, "1 3 zl yl xl"]:
    """The network's velocity for a batch of one un-augmented scan, refined; no gradient flows. Float32."""
    if batch.compared is None:
        raise ValueError("the batch holds nothing to compare the warped atlas with")
    with torch.no_grad(), autocast:
        velocity = register(nets, atlas, batch).velocity
    return refine(velocity, atlas, batch.compared, iterations)


def refine(
    velocity: Float[Tensor, "1 3 zl yl xl"], atlas: AtlasView, scan: View, iterations: int
) -> Float[Tensor, "1 3 zl yl xl"]:
    """Minimise the registration's own loss, similarity and smoothness, over one scan's velocity; coarse to fine.

    `scan`: un-augmented, on the grid of `atlas.compared`. `iterations`: Adam steps at each resolution of the images;
    the velocity stays on its grid, so it remains the field of a diffeomorphism. Deterministic.
    """
    refined = velocity.detach().float()
    if iterations == 0:
        return refined
    with torch.enable_grad(), torch.autocast(velocity.device.type, enabled=False):
        for size in _resolutions(atlas.compared):
            refined = _refine_at(size, refined, atlas, scan, iterations)
    return refined


def _refine_at(
    size: Size3, velocity: Float[Tensor, "1 3 zl yl xl"], atlas: AtlasView, scan: View, iterations: int
) -> Float[Tensor, "1 3 zl yl xl"]:
    """Refine by images of one size; a velocity that is finer than they are is changed by what they can tell."""
    moving, fixed, inside = (F.adaptive_avg_pool3d(v, size) for v in (atlas.compared, scan.clean, scan.inside))
    start = resize_field(velocity, [min(a, b) for a, b in zip(velocity.shape[2:], size, strict=True)])
    now = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([now], lr=LEARNING_RATE)
    for _ in range(iterations):
        optimizer.zero_grad(set_to_none=True)
        similarity = lncc(warp(moving, velocity_to_displacement(now, size)), fixed, inside)
        loss = SIMILARITY_WEIGHT * (1.0 - similarity) + SMOOTHNESS_WEIGHT * diffusion(now)
        loss.backward()
        optimizer.step()
    return velocity + resize_field(now.detach() - start, velocity.shape[2:])


def unfold(velocity: Float[Tensor, "1 3 zl yl xl"], shape: Size3) -> Float[Tensor, "1 3 z y x"]:
    """The displacement of a velocity on a finer grid, without folds (ten determinants).

    An integrated field is the field of a diffeomorphism, its samples on a grid are not quite. Where they fold, the
    velocity is smoothed, in ever wider surroundings of the folded voxels, until none is left or a dozen turns are over.
    """
    displacement = velocity_to_displacement(velocity, shape)
    for reach in UNFOLDING_REACHES:
        folded = torch.from_numpy(folded_voxels(displacement[0].cpu().numpy())).to(velocity)[None, None]
        if not folded.any():
            break
        near = F.adaptive_max_pool3d(folded, velocity.shape[2:])
        near = box_mean(F.max_pool3d(near, 2 * reach + 1, 1, reach), 3)
        velocity = velocity + near * (box_mean(velocity, 3) - velocity)
        displacement = velocity_to_displacement(velocity, shape)
    return displacement


def _resolutions(image: Float[Tensor, "1 c z y x"]) -> list[Size3]:
    """Image sizes, coarsest first; a size is left out if it saves less than half of the voxels of the next."""
    z, y, x = image.shape[2:]
    sizes = [(z, y, x)]
    for factor in COARSER:
        coarse_z, coarse_y, coarse_x = (max(n // factor, min(n, SMALLEST_EDGE)) for n in (z, y, x))
        if 2 * coarse_z * coarse_y * coarse_x <= math.prod(sizes[0]):
            sizes.insert(0, (coarse_z, coarse_y, coarse_x))
    return sizes
