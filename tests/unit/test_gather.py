"""Volumes of many channels are read by rows of a table: the same values as by torch's grid_sample."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rrlsam.nets.displacement import sample
from rrlsam.nets.gather import MANY_CHANNELS, gather, gathers

SHAPE, TARGET = (7, 9, 5), (4, 6, 8)


def volume(channels: int = MANY_CHANNELS) -> Tensor:
    random = torch.rand((1, channels, *SHAPE), generator=torch.Generator().manual_seed(0))
    return random.contiguous(memory_format=torch.channels_last_3d)


def points(*, beyond: float = 3.0) -> Tensor:
    """Voxel coordinates (x, y, z) in the volume and up to that many voxels beyond it."""
    random = torch.rand((1, 3, *TARGET), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor(SHAPE[::-1]).view(1, 3, 1, 1, 1)
    return random * (sizes - 1 + 2 * beyond) - beyond


def by_torch(values: Tensor, places: Tensor, padding: str) -> Tensor:
    half = (torch.tensor(SHAPE[::-1]) - 1).view(1, 3, 1, 1, 1) / 2
    grid = (places / half - 1).movedim(1, -1)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode=padding, align_corners=True)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_values_are_those_of_grid_sample_inside_and_beyond_the_volume(padding: str):
    found = gather(volume(), points(), border=padding == "border")
    torch.testing.assert_close(found, by_torch(volume(), points(), padding), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_voxels_themselves_are_read_exactly_up_to_the_last(padding: str):
    z, y, x = torch.meshgrid(*[torch.arange(n) for n in SHAPE], indexing="ij")
    assert torch.equal(gather(volume(), torch.stack([x, y, z])[None].float(), border=padding == "border"), volume())


def test_points_are_read_block_by_block(monkeypatch: pytest.MonkeyPatch):
    at_once = gather(volume(), points(), border=True)
    monkeypatch.setattr("rrlsam.nets.gather._BLOCK", 7)
    assert torch.equal(gather(volume(), points(), border=True), at_once)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_places_of_a_network_that_diverges_read_something(value: float):
    places = points()
    places[0, 0, 0, 0, 0] = value
    assert gather(volume(), places, border=True).isfinite().all()


def test_only_volumes_of_many_channels_side_by_side_are_gathered_and_none_that_learns():
    assert gathers(volume(), points())
    assert not gathers(volume(MANY_CHANNELS - 1), points())
    assert not gathers(volume().contiguous(), points())
    assert not gathers(volume().half(), points())
    assert not gathers(volume().expand(2, -1, -1, -1, -1), points().expand(2, -1, -1, -1, -1))
    learning = points().requires_grad_()
    assert not gathers(volume(), learning)
    with torch.no_grad():
        assert gathers(volume(), learning)


def test_sampling_learns_where_it_has_to_whatever_the_layout():
    places = points(beyond=0.0).requires_grad_()
    (slope,) = torch.autograd.grad(sample(volume(), places).square().sum(), places)
    (wanted,) = torch.autograd.grad(sample(volume().contiguous(), places).square().sum(), places)
    torch.testing.assert_close(slope, wanted)
    assert slope.any()
