"""What a registration of two scans is, on the grid it was found on and on the fixed scan's own."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.sampling import affine_points
from rrlsam.geometry import Geometry, index_map, itk_affine, slabs, to_sitk
from rrlsam.nets.displacement import sample
from rrlsam.nets.flow import Flow
from rrlsam.nets.jacobian import folded_voxels
from rrlsam.stages.refinement import unfold

SLAB_VOXELS = 1 << 20
"""Voxels of a field that are sampled at once."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A flow on a working grid, and how the worlds lie to each other. Matrices are (4, 4), LPS mm."""

    grid: Geometry
    fixed_to_grid: np.ndarray
    """From the fixed scan's world to the grid's world."""
    fixed_to_moving: np.ndarray
    """The affine part of the result: from the fixed scan's world to the moving one's."""
    flow: Flow
    alignment: str
    """How the affine alignment ended: affine or centre."""


@dataclass(frozen=True, kw_only=True)
class PairTransform:
    """A pull-back between two scans: x in the fixed scan is found at affine(x + field(x)) in the moving one.

    All in LPS mm. Both fields lie on the fixed scan's own grid, components x, y, z. The way back:
    y in the moving scan is found at x' + inverse_field(x') in the fixed one, with x' = affine^-1(y).
    """

    fixed: Geometry
    moving: Geometry
    affine: np.ndarray
    """(4, 4), fixed world to moving world."""
    field: Float[np.ndarray, "3 z y x"]
    inverse_field: Float[np.ndarray, "3 z y x"]

    def to_sitk(self) -> sitk.Transform:
        """As an ITK transform: fixed points to moving points, for resampling the moving scan."""
        return sitk.CompositeTransform([itk_affine(self.affine), itk_field(self.field, self.fixed)])

    def inverse_to_sitk(self) -> sitk.Transform:
        """As an ITK transform: moving points to fixed points, for resampling the fixed scan."""
        back = itk_affine(np.linalg.inv(self.affine))
        return sitk.CompositeTransform([itk_field(self.inverse_field, self.fixed), back])

    def field_in_voxels(self, *, inverse: bool = False) -> Float[np.ndarray, "3 z y x"]:
        """A field in voxels of the fixed grid."""
        return in_voxels(self.inverse_field if inverse else self.field, self.fixed)


def itk_field(field: Float[np.ndarray, "3 z y x"], grid: Geometry) -> sitk.DisplacementFieldTransform:
    """A field in LPS mm as ITK's transform."""
    return sitk.DisplacementFieldTransform(sitk.Cast(field_image(field, grid), sitk.sitkVectorFloat64))


def field_image(field: Float[np.ndarray, "3 z y x"], grid: Geometry) -> sitk.Image:
    """A field in LPS mm as a float32 vector image."""
    return to_sitk(np.ascontiguousarray(np.moveaxis(field, 0, -1), dtype=np.float32), grid, vectors=True)


def in_voxels(field: Float[np.ndarray, "3 z y x"], grid: Geometry) -> Float[np.ndarray, "3 z y x"]:
    """A field in LPS mm on a grid, in voxels of that grid."""
    return np.einsum("ij,jzyx->izyx", np.linalg.inv(grid.matrix[:3, :3]), field).astype(np.float32)


def on_scan(registration: Registration, fixed: Geometry, moving: Geometry) -> PairTransform:
    """Carry a registration to the fixed scan's own grid, where both ways are smoothed as `unfold` does it.

    With F from the fixed world to the grid's and u the field on the grid, field(x) = F^-1(F x + u(F x)) - x.
    Beyond the grid, the displacement at its border goes on.
    """
    to_grid = index_map(fixed, registration.grid, registration.fixed_to_grid)

    def both_ways(flow: Flow) -> tuple[np.ndarray, np.ndarray]:
        return native_field(registration, flow, fixed), native_field(registration, flow.inverse(), fixed)

    def folds(fields: tuple[np.ndarray, np.ndarray]) -> Float[Tensor, "1 1 z y x"] | None:
        marked = torch.zeros(registration.grid.shape)
        for field in fields:
            voxels = np.argwhere(folded_voxels(in_voxels(field, fixed)))[:, ::-1]
            places = np.rint(voxels @ to_grid[:3, :3].T + to_grid[:3, 3]).astype(int)[:, ::-1]
            z, y, x = np.clip(places, 0, np.array(marked.shape) - 1).T
            marked[z, y, x] = 1.0
        return marked[None, None].to(registration.flow.velocities[0]) if marked.any() else None

    _, (field, inverse_field) = unfold(registration.flow, both_ways, folds)
    return PairTransform(
        fixed=fixed, moving=moving, affine=registration.fixed_to_moving, field=field, inverse_field=inverse_field
    )


def native_field(registration: Registration, flow: Flow, fixed: Geometry) -> Float[np.ndarray, "3 z y x"]:
    """A flow's displacement on the fixed scan's own grid, LPS mm, float32."""
    grid = registration.grid
    displacement = flow.displacement(grid.shape).cpu()
    to_world = (np.linalg.inv(registration.fixed_to_grid) @ grid.matrix)[:3, :3]
    field = np.empty((3, *fixed.shape), dtype=np.float32)
    for where, slab in slabs(fixed, SLAB_VOXELS):
        points = affine_points(slab.shape, index_map(slab, grid, registration.fixed_to_grid))
        moved = sample(displacement, points)[0].numpy()
        field[:, where] = np.einsum("ij,jzyx->izyx", to_world, moved)
    return field
