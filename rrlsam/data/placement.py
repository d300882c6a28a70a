"""Where a training step looks: the fine grid, bent, turned and scaled at random, so that every scan is sampled once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.sampling import affine_map, affine_points
from rrlsam.geometry import Geometry, index_map
from rrlsam.nets.registration import displacement_at


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A map of the fine grid onto itself: bent first, then carried by a matrix."""

    fine: Geometry
    matrix: np.ndarray
    """(4, 4), voxel indices (x, y, z) to such."""
    bend: Float[Tensor, "1 3 _z _y _x"] | None = None
    """Displacement over the fine grid's field of view, in voxels of its own grid."""

    def points(self, seen: Geometry) -> Float[Tensor, "1 3 z y x"]:
        """Where the voxels of a grid within the fine one look: voxel coordinates (x, y, z) of the fine grid."""
        if self.bend is None:
            return affine_points(seen.shape, self.matrix @ index_map(seen, self.fine))
        points = affine_points(seen.shape, index_map(seen, self.fine))
        return affine_map(self.matrix, points + displacement_at(self.bend, points, self.fine.shape))
