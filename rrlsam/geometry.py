"""Where voxels lie in the world. Conventions (docs/conventions.md): arrays are (z, y, x), as ITK's and nnU-Net's;
points and matrices are (x, y, z); the world is ITK's, LPS in millimetres."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import SimpleITK as sitk

from rrlsam.system.jsonio import record

Size3 = tuple[int, int, int]
Vector3 = tuple[float, float, float]
Matrix4 = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]


@record
class Geometry:
    """A voxel grid in the world."""

    shape: Size3
    """Number of voxels, axis order z, y, x."""
    affine: Matrix4
    """Voxel index (x, y, z, 1) to world (LPS mm)."""

    @property
    def matrix(self) -> np.ndarray:
        """`affine` as a float64 array (4, 4)."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def spacing_mm(self) -> Vector3:
        """Voxel edge lengths, axis order z, y, x."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0).tolist()
        return (z, y, x)

    @property
    def extent_mm(self) -> Vector3:
        """Edge lengths of the field of view, axis order z, y, x."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return (z, y, x)

    @property
    def centre_mm(self) -> np.ndarray:
        """World position of the grid's centre, (3,)."""
        middle = (np.array(self.shape[::-1], dtype=np.float64) - 1) / 2
        return self.matrix[:3, :3] @ middle + self.matrix[:3, 3]

    @property
    def corners_vox(self) -> np.ndarray:
        """Outer corners of the field of view as voxel coordinates (x, y, z), (8, 3)."""
        return np.array(list(product(*((-0.5, n - 0.5) for n in self.shape[::-1]))))

    def box(self, start: Sequence[int], stop: Sequence[int]) -> "Geometry":
        """The grid from voxel `start` up to (not including) `stop`, axis order z, y, x; may reach outside."""
        shape = tuple(int(b) - int(a) for a, b in zip(start, stop, strict=True))
        return make_geometry(shape, self.matrix @ _translation([int(a) for a in start][::-1]))

    def with_spacing(self, spacing_mm: Sequence[float]) -> "Geometry":
        """The same field of view cut into voxels of another size (z, y, x); at least one voxel an axis."""
        old = np.array(self.spacing_mm)
        new = np.array(spacing_mm, dtype=np.float64)
        shape = np.maximum(np.round(np.array(self.shape) * old / new), 1).astype(int)
        scale = (new / old)[::-1]
        matrix = self.matrix
        step = matrix @ np.diag([*scale, 1.0])
        centre_shift = (np.array(self.shape[::-1]) - 1) / 2 - scale * (shape[::-1] - 1) / 2
        step[:3, 3] = matrix[:3, :3] @ centre_shift + matrix[:3, 3]
        return make_geometry(shape.tolist(), step)


@record
class Reflection:
    """The plane of symmetry of an atlas, and what changes places across it."""

    matrix: Matrix4
    """Atlas world to atlas world (LPS mm), its own inverse: where the counterpart of a point lies."""
    swapped: tuple[int, ...]
    """For each declared label value, background first, the value of its counterpart."""

    @property
    def world(self) -> np.ndarray:
        """`matrix` as a float64 array (4, 4)."""
        return np.array(self.matrix, dtype=np.float64)

    def on_voxels(self, grid: Geometry) -> np.ndarray:
        """The same on voxel coordinates (x, y, z) of a grid in the atlas's world, (4, 4)."""
        return index_map(grid, grid, self.world)


def make_geometry(shape: Sequence[int], affine: np.ndarray) -> Geometry:
    """A Geometry from anything that looks like a shape (z, y, x) and a 4x4 matrix."""
    return Geometry(shape=tuple(int(n) for n in shape), affine=matrix_rows(affine))  # pyright: ignore[reportArgumentType]


def matrix_rows(matrix: np.ndarray) -> Matrix4:
    """A (4, 4) array as records keep it."""
    return tuple(tuple(float(v) for v in row) for row in np.asarray(matrix, dtype=np.float64))  # pyright: ignore


def geometry_of(image: sitk.Image) -> Geometry:
    """The grid of a 3-D SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return make_geometry(image.GetSize()[::-1], affine)


def to_sitk(array: np.ndarray, geometry: Geometry, *, vectors: bool = False) -> sitk.Image:
    """A SimpleITK image of a (z, y, x) array on a grid; `vectors`: of a (z, y, x, component) array."""
    return place(sitk.GetImageFromArray(array, isVector=vectors), geometry)


def place(image: sitk.Image, geometry: Geometry) -> sitk.Image:
    """The image itself, told where its grid lies."""
    spacing = np.linalg.norm(geometry.matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((geometry.matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(geometry.matrix[:3, 3].tolist())
    return image


def slabs(grid: Geometry, most_voxels: int) -> Iterator[tuple[slice, Geometry]]:
    """A grid cut along z into slabs of at most so many voxels (one slice at least), which bounds memory."""
    depth = max(1, most_voxels // (grid.shape[1] * grid.shape[2]))
    for first in range(0, grid.shape[0], depth):
        last = min(first + depth, grid.shape[0])
        yield slice(first, last), grid.box((first, 0, 0), (last, *grid.shape[1:]))


def tiles(shape: tuple[int, ...], patch: Size3, overlap: float) -> Iterator[tuple[slice, ...]]:
    """Boxes of patch size that cover a grid, evenly spread; neighbours overlap by at least that share.

    But for one voxel, by which neighbours lie apart at least.
    """
    starts = []
    for n, p in zip(shape, patch, strict=True):
        steps = int(np.ceil((n - p) / max(p * (1 - overlap), 1))) + 1 if n > p else 1
        starts.append(sorted({round(i * (n - p) / max(steps - 1, 1)) for i in range(steps)}))
    for corner in product(*starts):
        yield tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))


def finest_axes_coarser(spacing_mm: Sequence[float], step: float) -> Vector3:
    """A step (a factor above 1) towards fewer voxels, as long as wide: only the finest axes become coarser."""
    finest = min(spacing_mm)
    z, y, x = (s * step if s < finest * step else s for s in spacing_mm)
    return (z, y, x)


def itk_affine(matrix: np.ndarray) -> sitk.AffineTransform:
    """A (4, 4) world matrix as ITK's transform."""
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def index_map(target: Geometry, source: Geometry, world_target_to_source: np.ndarray | None = None) -> np.ndarray:
    """4x4 matrix from voxel indices of `target` to voxel indices of `source`, both (x, y, z).

    `world_target_to_source` (4, 4) carries world points of the target into the source's world; None: one world.
    """
    world = np.eye(4) if world_target_to_source is None else world_target_to_source
    return np.linalg.inv(source.matrix) @ world @ target.matrix


def _translation(offset_xyz: Sequence[int]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset_xyz
    return matrix
