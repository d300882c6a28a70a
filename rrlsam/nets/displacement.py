"""Displacement fields, and the velocities they are the flow of: integrate, sample, warp, resize.

A displacement field u (b, 3, z, y, x) is in voxels of its own grid, component order x, y, z. It pulls: `warp(atlas, u)`
reads the atlas at x + u(x) for every voxel x of the case. Units of [-1, 1] exist only inside `sample`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.nets.gather import gather, gathers
from rrlsam.nets.separable import interpolation, separable

INTEGRATION_STEPS = 7


def identity_grid(shape: Sequence[int], like: Tensor) -> Float[Tensor, "1 3 z y x"]:
    """Voxel coordinates (x, y, z) of every voxel of a (z, y, x) grid."""
    axes = [torch.arange(n, device=like.device, dtype=torch.float32) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z])[None]


def sample(
    volume: Float[Tensor, "b c z y x"], points: Float[Tensor, "b 3 z2 y2 x2"], *, padding: str = "border"
) -> Float[Tensor, "b c z2 y2 x2"]:
    """Trilinear values of a volume at voxel coordinates (x, y, z)."""
    if gathers(volume, points):
        return gather(volume, points, border=padding == "border")
    sizes = torch.tensor(volume.shape[:1:-1], device=points.device, dtype=torch.float32).view(1, 3, 1, 1, 1)
    scaled = points * (2.0 / (sizes - 1).clamp(min=1)) - 1.0
    return F.grid_sample(volume, scaled.movedim(1, -1), mode="bilinear", padding_mode=padding, align_corners=True)


def warp(volume: Float[Tensor, "b c z y x"], displacement: Float[Tensor, "b 3 z y x"]) -> Float[Tensor, "b c z y x"]:
    """Pull a volume through a displacement field: the value at x is read at x + u(x), borders replicated."""
    return sample(volume, identity_grid(displacement.shape[2:], displacement) + displacement)


def integrate(velocity: Float[Tensor, "b 3 z y x"], steps: int = INTEGRATION_STEPS) -> Float[Tensor, "b 3 z y x"]:
    """Displacement at time 1 of a stationary velocity field, by scaling and squaring."""
    grid = identity_grid(velocity.shape[2:], velocity)
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample(displacement, grid + displacement)
    return displacement


def resize_field(field: Float[Tensor, "b 3 z y x"], shape: Sequence[int]) -> Float[Tensor, "b 3 z2 y2 x2"]:
    """A field on another grid over the same voxel edges; its values become voxels of that grid.

    A level of stride s covers voxels s*i + (s-1)/2 of the finer grid, hence align_corners=False.
    """
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    z, y, x = (interpolation(new, old, field) for new, old in zip(shape, field.shape[2:], strict=True))
    return separable(field, z, y, x) * voxels_per_voxel(field.shape[2:], shape, field)


def displacement_at(
    field: Float[Tensor, "b 3 z y x"], points: Float[Tensor, "b 3 z2 y2 x2"], shape: Sequence[int]
) -> Float[Tensor, "b 3 z2 y2 x2"]:
    """A field's values at points of another (z, y, x) grid over the same voxel edges, in voxels of that grid.

    What `resize_field` computes for every voxel of that grid.
    """
    scale = voxels_per_voxel(field.shape[2:], shape, field)
    return sample(field, (points + 0.5) / scale - 0.5) * scale


def voxels_per_voxel(coarse: Sequence[int], fine: Sequence[int], like: Tensor) -> Float[Tensor, "1 3 1 1 1"]:
    """How many voxels of one (z, y, x) grid are one voxel of another over the same field of view, along x, y, z."""
    ratio = [f / c for f, c in zip(fine, coarse, strict=True)]
    return torch.tensor(ratio[::-1], device=like.device, dtype=like.dtype).view(1, 3, 1, 1, 1)
