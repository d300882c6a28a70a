"""A teacher of slices shown volumes along any axes."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rrlsam.geometry import Size3, Vector3
from rrlsam.teacher.feature_cache import Teacher

T = TypeVar("T")


@runtime_checkable
class SliceTeacher(Teacher, Protocol):
    """What sees a volume's slices along z, such as rrlsam.nets.sam.SamTeacher."""

    def seconds_per_slice(self, volume: Tensor) -> float:
        """How long a slice of such volumes takes here."""
        ...


class AlongAxes:
    """A teacher that sees a volume sliced along each of some axes and averages its features.

    Voxels are made square in each slice, whatever their spacing.
    """

    def __init__(self, teacher: SliceTeacher, axes: Sequence[int], spacing_mm: Vector3) -> None:
        self._teacher, self._axes, self._spacing_mm = teacher, tuple(axes), spacing_mm

    def features(self, volume: Float[Tensor, "1 c z y x"], grid: Size3) -> Float[Tensor, "1 256 grid_z grid_y grid_x"]:
        """The mean over axes, each axis with the same weight."""
        return torch.stack([self._along(axis, volume, grid) for axis in self._axes]).mean(0)

    def seconds_per_slice(self, volume: Float[Tensor, "1 c z y x"]) -> float:
        """Mean over all slices of all axes."""
        counts = [volume.shape[2 + axis] for axis in self._axes]
        each = [self._teacher.seconds_per_slice(self._sliced(axis, volume)) for axis in self._axes]
        return sum(n * seconds for n, seconds in zip(counts, each, strict=True)) / sum(counts)

    def slices(self, volume: Float[Tensor, "1 c z y x"]) -> int:
        """How many slices of a volume are seen."""
        return sum(volume.shape[2 + axis] for axis in self._axes)

    def _along(self, axis: int, volume: Tensor, grid: Size3) -> Tensor:
        turned = grid[axis], *_without(axis, grid)
        return self._teacher.features(self._sliced(axis, volume), turned).movedim(2, 2 + axis)

    def _sliced(self, axis: int, volume: Tensor) -> Tensor:
        """The volume with the axis first and square pixels."""
        pixel_mm = _without(axis, self._spacing_mm)
        sliced = volume.movedim(2 + axis, 2)
        height, width = (round(n * mm / min(pixel_mm)) for n, mm in zip(sliced.shape[3:], pixel_mm, strict=True))
        if (height, width) == tuple(sliced.shape[3:]):
            return sliced
        size = (sliced.shape[2], height, width)
        return functional.interpolate(sliced.float(), size, mode="trilinear", align_corners=False)


def _without(axis: int, values: tuple[T, T, T]) -> tuple[T, T]:
    first, second = (value for other, value in enumerate(values) if other != axis)
    return first, second
