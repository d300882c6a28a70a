import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rrlsam.geometry import Size3
from rrlsam.teacher.slices import AlongAxes

GRID = (2, 3, 5)
CUBES = (1.0, 1.0, 1.0)


class Means:
    """Features are the means of the cells; keeps what it was shown."""

    def __init__(self):
        self.seen: list[tuple[int, ...]] = []

    def features(self, volume: Tensor, grid: Size3) -> Tensor:
        self.seen.append(tuple(volume.shape[2:]))
        return functional.adaptive_avg_pool3d(volume, grid).expand(-1, 256, -1, -1, -1)

    def seconds_per_slice(self, volume: Tensor) -> float:
        return float(volume.shape[3] * volume.shape[4])


class SliceNumbers(Means):
    """Features are the slices' numbers."""

    def features(self, volume: Tensor, grid: Size3) -> Tensor:
        numbers = torch.arange(grid[0]).float()[:, None, None]
        return numbers.expand(1, 256, *grid)


def volume() -> Tensor:
    return torch.rand(1, 1, 4, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("axis", "seen"), [(0, (4, 6, 10)), (1, (6, 4, 10)), (2, (10, 4, 6))])
def test_the_axis_comes_first_and_features_are_turned_back(axis: int, seen: tuple[int, ...]):
    teacher = Means()
    found = AlongAxes(teacher, (axis,), CUBES).features(volume(), GRID)
    assert teacher.seen == [seen]
    torch.testing.assert_close(found[:, :1], functional.adaptive_avg_pool3d(volume(), GRID))


def test_features_of_several_axes_are_averaged():
    found = AlongAxes(SliceNumbers(), (0, 1, 2), CUBES).features(volume(), GRID)
    assert found.shape == (1, 256, *GRID)
    z, y, x = (torch.arange(n) for n in GRID)
    expected = (z[:, None, None] + y[None, :, None] + x[None, None, :]) / 3
    torch.testing.assert_close(found[0, 7], expected)


def test_pixels_are_made_square():
    teacher = Means()
    AlongAxes(teacher, (0, 1, 2), (3.0, 1.0, 1.0)).features(volume(), GRID)
    assert teacher.seen == [(4, 6, 10), (6, 12, 10), (10, 12, 6)]


def test_slices_and_seconds_of_all_axes_count():
    sliced = AlongAxes(Means(), (0, 1, 2), CUBES)
    assert sliced.slices(volume()) == 20
    assert sliced.seconds_per_slice(volume()) == pytest.approx(3 * 240 / 20)
