"""A diffeomorphism as a chain of stationary velocity fields: coarse ones for large motion, fine ones for the rest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rrlsam.nets.displacement import identity_grid, integrate, resize_field, sample

EXACT_STEP = 0.25
"""Voxels that the first step of an integration may move."""


@dataclass(frozen=True)
class Flow:
    """x -> v_1(v_2(... v_n(x))), where each v stands for the flow of a velocity field at time 1.

    All fields cover the same field of view, each in voxels of its own grid, components x, y, z. Displacements pull, as
    everywhere. Flows of finite velocities are invertible; the samples of a displacement on a grid are so only nearly.
    """

    velocities: tuple[Float[Tensor, "1 3 _z _y _x"], ...]

    def displacement(self, shape: Sequence[int]) -> Float[Tensor, "1 3 z y x"]:
        """Displacement in voxels of a (z, y, x) grid over the field of view."""
        total = None
        for velocity in reversed(self.velocities):
            whole = resize_field(integrate(velocity, steps_for(velocity, EXACT_STEP)), shape)
            total = followed_by(total, whole)
        if total is None:
            raise ValueError("a flow needs at least one velocity")
        return total

    def inverse(self) -> "Flow":
        """The map that undoes this one."""
        return Flow(tuple(-velocity for velocity in reversed(self.velocities)))


def followed_by(
    first: Float[Tensor, "1 3 z y x"] | None, second: Float[Tensor, "1 3 z y x"]
) -> Float[Tensor, "1 3 z y x"]:
    """Displacement of x -> second(first(x)), both on one grid; None stays where it is."""
    if first is None:
        return second
    return first + sample(second, identity_grid(first.shape[2:], first) + first)


def steps_for(velocity: Float[Tensor, "b 3 z y x"], largest_step: float) -> int:
    """Squarings after which the first step of an integration moves no voxel farther than that.

    None for a velocity that is not finite, which no number of them mends.
    """
    fastest = float(velocity.detach().abs().max())
    if not math.isfinite(fastest):
        return 0
    return max(0, math.ceil(math.log2(fastest / largest_step))) if fastest > largest_step else 0
