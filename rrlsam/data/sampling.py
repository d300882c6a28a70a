"""Scans onto the atlas grid: one interpolation, augmentation composed with the scan's affine."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rrlsam.geometry import Geometry, Size3, index_map
from rrlsam.nets.displacement import identity_grid
from rrlsam.system.resources import usable_memory

CACHE_BYTES = 2 << 30
"""What kept scans may take at least; a quarter of the free memory if that is more. Order is a shuffle an epoch, so that
a cache too small for all scans has most of them read, unpacked and checked again."""
_ROUNDING = 1e-3
"""Voxels by which a point may lie outside by rounding."""


@dataclass(frozen=True, kw_only=True)
class TrainingScan:
    """A preprocessed scan and how the atlas's world maps into its own."""

    image: Tensor
    """(c, z, y, x), normalised, float32."""
    geometry: Geometry
    atlas_to_case: np.ndarray
    """(4, 4) world matrix, LPS mm."""
    uncut: Geometry | None = None
    """The scan's grid before its empty borders were cut off; None: none were."""
    label: Int[Tensor, "z2 y2 x2"] | None = None
    """On the fine atlas grid (declared values), if training may look at it."""


def sample_affine(
    image: Float[Tensor, "c z y x"], matrix: np.ndarray, shape: Size3, *, padding: str = "border"
) -> Float[Tensor, "c z2 y2 x2"]:
    """Trilinear resampling; `matrix` (4, 4) carries target voxel indices (x, y, z) to source voxel indices."""
    to_index = torch.tensor(_normalised(matrix, shape, tuple(image.shape[1:])), dtype=torch.float32)[None]
    grid = F.affine_grid(to_index, [1, 1, *shape], align_corners=True)
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode=padding, align_corners=True)[0]


def shares_at(
    label: Int[Tensor, "z y x"], points: Float[Tensor, "1 3 z2 y2 x2"], n_values: int
) -> Float[Tensor, "k z2 y2 x2"]:
    """How much of each value lies at points (x, y, z), trilinear; beyond the label lies value 0.

    As sampling the one-hot label would, without one-hot channels of the whole grid.
    """
    first = points[0].floor()
    rest, size = points[0] - first, torch.tensor(label.shape[::-1]).view(3, 1, 1, 1)
    shares = torch.zeros((n_values, *points.shape[2:]))
    for corner in product((0, 1), repeat=3):
        step = torch.tensor(corner).view(3, 1, 1, 1)
        at = first.long() + step
        inside = ((at >= 0) & (at < size)).all(0)
        x, y, z = at.clamp(min=torch.zeros_like(size), max=size - 1)
        value = torch.where(inside, label[z, y, x].long(), 0)
        shares.scatter_add_(0, value[None], torch.where(step == 1, rest, 1 - rest).prod(0, keepdim=True))
    return shares


def inside_mask(source: tuple[int, ...], matrix: np.ndarray, shape: Size3) -> Float[Tensor, "1 z y x"]:
    """1 where a target voxel lies within half a voxel of the source's field of view, else 0."""
    return inside_at(affine_points(shape, matrix), source)[0]


def inside_at(points: Float[Tensor, "1 3 z y x"], source: tuple[int, ...]) -> Float[Tensor, "1 1 z y x"]:
    """1 where a point (x, y, z) lies within half a voxel of a (z, y, x) grid, else 0."""
    stop = points.new_tensor(source[::-1]).view(1, 3, 1, 1, 1) - 0.5
    return ((points >= -0.5 - _ROUNDING) & (points <= stop + _ROUNDING)).all(1, keepdim=True).float()


def grid_to_scan(grid: Geometry, scan: TrainingScan, augmentation: np.ndarray | None = None) -> np.ndarray:
    """Voxel indices of the atlas grid to voxel indices of a scan; `augmentation` acts on grid indices first."""
    matrix = index_map(grid, scan.geometry, scan.atlas_to_case)
    return matrix if augmentation is None else matrix @ augmentation


def affine_points(shape: Sequence[int], matrix: np.ndarray) -> Float[Tensor, "1 3 z y x"]:
    """Where `matrix` (4, 4) carries each voxel of a (z, y, x) grid; coordinates (x, y, z)."""
    return affine_map(matrix, identity_grid(shape, torch.zeros(())))


def affine_map(matrix: np.ndarray, points: Float[Tensor, "b 3 z y x"]) -> Float[Tensor, "b 3 z y x"]:
    """Points (x, y, z) through a (4, 4) matrix."""
    linear = torch.tensor(matrix[:3, :3], dtype=torch.float32)
    offset = torch.tensor(matrix[:3, 3], dtype=torch.float32)
    return torch.einsum("ij,bjzyx->bizyx", linear, points) + offset.view(1, 3, 1, 1, 1)


def _normalised(matrix: np.ndarray, target: tuple[int, ...], source: tuple[int, ...]) -> np.ndarray:
    """An index-to-index matrix as torch's 3x4 matrix in [-1, 1] units (align_corners=True)."""
    half_target = np.array([max(n - 1, 1) / 2 for n in target[::-1]])
    half_source = np.array([max(n - 1, 1) / 2 for n in source[::-1]])
    scale = np.diag([*half_target, 1.0])
    scale[:3, 3] = [(n - 1) / 2 for n in target[::-1]]
    mapped = matrix @ scale
    centre = np.array([(n - 1) / 2 for n in source[::-1]])
    return np.concatenate([mapped[:3, :3], (mapped[:3, 3] - centre)[:, None]], axis=1) / half_source[:, None]


class ScanCache:
    """The most recently used scans, up to a number of bytes (None: see CACHE_BYTES)."""

    def __init__(self, load: Callable[[str], TrainingScan], limit_bytes: int | None = None) -> None:
        self._load = load
        self._limit = max(CACHE_BYTES, usable_memory().free // 4) if limit_bytes is None else limit_bytes
        self._scans: OrderedDict[str, TrainingScan] = OrderedDict()

    def __getitem__(self, case: str) -> TrainingScan:
        if case not in self._scans:
            self._scans[case] = self._load(case)
        self._scans.move_to_end(case)
        while len(self._scans) > 1 and _bytes(self._scans.values()) > self._limit:
            self._scans.popitem(last=False)
        return self._scans[case]


def _bytes(scans: Iterable[TrainingScan]) -> int:
    """What scans take; a scan and its mirror image share their voxels."""
    tensors = [tensor for scan in scans for tensor in (scan.image, scan.label) if tensor is not None]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
