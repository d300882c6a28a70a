"""Trilinear values of a volume of many channels: each point is a weighted sum of eight rows of a table."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

MANY_CHANNELS = 16
"""With fewer, `grid_sample` is as fast."""
_BLOCK = 1 << 15
"""Points that are looked up at once: what belongs to them stays in a processor's cache."""


def gathers(volume: Float[Tensor, "b c z y x"], points: Float[Tensor, "b 3 z2 y2 x2"]) -> bool:
    """Whether `gather` is the faster way: one float volume on a CPU, a voxel's channels side by side, no gradient."""
    learns = torch.is_grad_enabled() and (volume.requires_grad or points.requires_grad)
    lies_so = volume.is_contiguous(memory_format=torch.channels_last_3d)
    alike = volume.dtype == points.dtype == torch.float32 and volume.device == points.device
    return alike and lies_so and not learns and volume.is_cpu and len(volume) == 1 and volume.shape[1] >= MANY_CHANNELS


def gather(
    volume: Float[Tensor, "1 c z y x"], points: Float[Tensor, "1 3 z2 y2 x2"], *, border: bool
) -> Float[Tensor, "1 c z2 y2 x2"]:
    """Trilinear values at voxel coordinates (x, y, z). No gradient.

    `border`: whether the outermost voxels go on beyond the volume; else there is 0.
    """
    table, places = volume[0].movedim(0, -1).flatten(0, 2), points[0].flatten(1)
    found = table.new_empty(table.shape[1], places.shape[1])
    for values, some in zip(found.split(_BLOCK, dim=1), places.split(_BLOCK, dim=1), strict=True):
        rows, weights = _corners(some, volume.shape[2:], border=border)
        values.copy_(F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights).T)
    return found.view(1, -1, *points.shape[2:])


def _corners(
    places: Float[Tensor, "3 n"], shape: Sequence[int], *, border: bool
) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    """The eight voxels around each place, as rows of the table, and their weights."""
    x, y, z = (list(_neighbours(place, n, border=border)) for place, n in zip(places, reversed(shape), strict=True))
    corners = list(product(z, y, x))
    rows = [(k * shape[1] + j) * shape[2] + i for (k, _), (j, _), (i, _) in corners]
    weights = [c * b * a for (_, c), (_, b), (_, a) in corners]
    return torch.stack(rows, dim=1), torch.stack(weights, dim=1)


def _neighbours(
    place: Float[Tensor, " n"], size: int, *, border: bool
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, " n"]]]:
    """The two voxels of an axis around each place, and their weights."""
    place = place.nan_to_num(nan=0.0, posinf=size, neginf=-1.0)  # of a network that diverges
    if border:
        place = place.clamp(0, size - 1)
    low = place.floor()
    for voxel, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
        inside = (voxel >= 0) & (voxel <= size - 1)
        yield voxel.clamp(0, size - 1).int(), weight if border else weight * inside
