"""Instance-wise refinement: the network's field is where the optimisation of one pair starts."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch, View
from rrlsam.geometry import Size3
from rrlsam.losses.similarity import ImagesAndLabels, LocalCorrelation, SquaredDifference
from rrlsam.nets.build import Networks
from rrlsam.nets.displacement import integrate, resize_field, warp
from rrlsam.nets.flow import Flow, steps_for
from rrlsam.nets.jacobian import folded_voxels
from rrlsam.nets.separable import smoothed
from rrlsam.stages.registration import register

Similarity = LocalCorrelation | SquaredDifference | ImagesAndLabels
Samples = TypeVar("Samples")

STEP = 0.1
"""How far a step moves a velocity, in voxels of its grid."""
FORCE_SIGMA = 1.0
"""Gaussian by which forces are smoothed (the field is fluid), in voxels of the velocity's grid."""
VELOCITY_SIGMA = 0.5
"""Gaussian by which the velocity is smoothed in each step (the field is elastic)."""
LARGEST_STEP = 1.0
"""Voxels that an integration moves at once while optimising."""
WINDOW, STRIDE = 4, 2
"""Windows of the local correlation: small ones see fine structures, every second one is enough."""
COARSER = (2, 4)
SMALLEST_EDGE = 24
"""Images are not made coarser than this many voxels an axis."""
UNFOLDING_REACHES = range(2, 14)
_FAINT = 3e-3
"""Forces below this are no longer blown up to a whole step; those of structures are 0.01 to 1."""


def refined_flow(
    nets: Networks, atlas: AtlasView, batch: Batch, iterations: int, *, autocast: AbstractContextManager[object]
) -> Flow:
    """The network's velocity for a batch of one un-augmented scan, refined; no gradient flows. Float32."""
    if batch.compared is None:
        raise ValueError("the batch holds nothing to compare the warped atlas with")
    with torch.no_grad(), autocast:
        velocity = register(nets, atlas, batch).velocity
    return refine(velocity, atlas.compared, batch.compared, iterations)


def refine(
    velocity: Float[Tensor, "1 3 zl yl xl"],
    moving: Float[Tensor, "1 c z y x"],
    scan: View,
    iterations: int,
    similarity: Callable[[Tensor, Tensor], Similarity] | None = None,
) -> Flow:
    """Make a moving image more like a scan: coarse to fine on the velocity's grid, then a remainder on the images' own.

    `scan`: un-augmented, on the moving image's grid. `iterations`: steps at each resolution, and of the remainder.
    `similarity`: what is maximised, made of fixed image and weight; None: local correlation. Deterministic.
    """
    similarity = similarity or (lambda fixed, inside: LocalCorrelation(fixed, inside, WINDOW, STRIDE))
    refined = velocity.detach().float()
    if iterations == 0:
        return Flow((refined,))
    with torch.no_grad(), torch.autocast(velocity.device.type, enabled=False):
        for size in _resolutions(moving):
            small = [F.adaptive_avg_pool3d(v, size) for v in (moving, scan.clean, scan.inside)]
            start = resize_field(refined, [min(a, b) for a, b in zip(refined.shape[2:], size, strict=True)])
            found = _ascend(start, small[0], similarity(small[1], small[2]), iterations)
            refined = refined + resize_field(found - start, refined.shape[2:])
        flow, size = Flow((refined,)), moving.shape[2:]
        moved = warp(moving, flow.displacement(size))
        rest = refined.new_zeros((1, 3, *size))
        return Flow((refined, _ascend(rest, moved, similarity(scan.clean, scan.inside), iterations)))


def _ascend(
    velocity: Float[Tensor, "1 3 zl yl xl"], moving: Float[Tensor, "1 c z y x"], similarity: Similarity, iterations: int
) -> Float[Tensor, "1 3 zl yl xl"]:
    """Change a velocity so that the moving image gets more like the fixed one.

    Each step composes the map with a small one from the right (log-demons, Vercauteren et al., MICCAI 2008): the force
    is the similarity's gradient in the moved image times the moved image's own. Adam gives all places one speed.
    """
    size, now = moving.shape[2:], velocity.clone()
    z, y, x = velocity.shape[2:]
    optimizer = torch.optim.Adam([now], lr=STEP, betas=(0.9, 0.99), eps=_FAINT)
    for _ in range(iterations):
        displacement = resize_field(integrate(now, steps_for(now, LARGEST_STEP)), size)
        moved = warp(moving, displacement)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(-similarity(moved.requires_grad_()) * similarity.n_counted, moved)
        force = _force(slope, moved.detach())
        now.grad = smoothed(F.adaptive_avg_pool3d(force, (z, y, x)), FORCE_SIGMA)
        optimizer.step()
        now.copy_(smoothed(now, VELOCITY_SIGMA))
    return now


def _force(slope: Float[Tensor, "1 c z y x"], moved: Float[Tensor, "1 c z y x"]) -> Float[Tensor, "1 3 z y x"]:
    """How a loss changes as a moved image is pulled along x, y, z; 0 at the border."""
    force = slope.new_zeros((1, 3, *slope.shape[2:]))
    for component, axis in enumerate((4, 3, 2)):
        n = moved.shape[axis]
        central = (moved.narrow(axis, 2, n - 2) - moved.narrow(axis, 0, n - 2)) / 2
        product = (central * slope.narrow(axis, 1, n - 2)).sum(1)
        force[:, component].narrow(axis - 1, 1, n - 2).copy_(product)
    return force


def unfold(
    flow: Flow, sampled: Callable[[Flow], Samples], folds: Callable[[Samples], Float[Tensor, "1 1 z y x"] | None]
) -> tuple[Flow, Samples]:
    """A flow whose samples do not fold, and its samples.

    `folds` marks where samples do, on any grid over the field of view; None: nowhere. There the velocities are
    smoothed, in ever wider surroundings, until no fold is left or a dozen turns are over.
    """
    samples = sampled(flow)
    for reach in UNFOLDING_REACHES:
        folded = folds(samples)
        if folded is None:
            break
        flow = Flow(tuple(_smoothed_near(velocity, folded, reach) for velocity in flow.velocities))
        samples = sampled(flow)
    return flow, samples


def unfold_on(shape: Size3, flow: Flow) -> tuple[Flow, Float[Tensor, "1 3 z y x"]]:
    """A flow whose displacement on a (z, y, x) grid does not fold (ten determinants), and that displacement."""

    def folds(displacement: Float[Tensor, "1 3 z y x"]) -> Float[Tensor, "1 1 z y x"] | None:
        folded = folded_voxels(displacement[0].cpu().numpy())
        return torch.from_numpy(folded).to(displacement)[None, None] if folded.any() else None

    return unfold(flow, lambda flow: flow.displacement(shape), folds)


def _smoothed_near(
    velocity: Float[Tensor, "1 3 zl yl xl"], folded: Float[Tensor, "1 1 z y x"], reach: int
) -> Float[Tensor, "1 3 zl yl xl"]:
    near = F.adaptive_max_pool3d(folded, velocity.shape[2:])
    near = smoothed(F.max_pool3d(near, 2 * reach + 1, 1, reach), 1.0)
    return velocity + near * (smoothed(velocity, 1.0) - velocity)


def _resolutions(image: Float[Tensor, "1 c z y x"]) -> list[Size3]:
    """Image sizes, coarsest first; a size is left out if it saves less than half of the voxels of the next."""
    z, y, x = image.shape[2:]
    sizes = [(z, y, x)]
    for factor in COARSER:
        coarse_z, coarse_y, coarse_x = (max(n // factor, min(n, SMALLEST_EDGE)) for n in (z, y, x))
        if 2 * coarse_z * coarse_y * coarse_x <= math.prod(sizes[0]):
            sizes.insert(0, (coarse_z, coarse_y, coarse_x))
    return sizes
