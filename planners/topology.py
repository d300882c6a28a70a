"""nnU-Net's planning rules (Isensee et al. 2021; as in nnunetv2 2.8), numbers in, numbers out. Axis order z, y, x.

nnU-Net first moves the coarsest axis to the front; no rule here depends on the order of axes, so that is left out.
"""

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from rrlsam.geometry import Size3, Vector3
from rrlsam.plan import Normalization
from rrlsam.system.jsonio import record

ANISOTROPY_THRESHOLD = 3.0
"""An axis this much coarser than the others, in millimetres and in voxels, gets a finer target spacing."""
MIN_BOTTLENECK_EDGE = 4
START_PATCH_VOXELS = 256**3
COARSENING_STEP = 1.03


@record
class Topology:
    """Where a U-Net pools and how it convolves; one entry a level, finest first."""

    strides: tuple[Size3, ...]
    """Stride with which a level begins; the first is (1, 1, 1)."""
    kernels: tuple[Size3, ...]
    patch: Size3
    """The patch, padded to a multiple of the total stride."""


def normalization(channel_name: str) -> Normalization:
    """How a channel is normalised: by its casefolded name if that is a method's, zscore otherwise."""
    named: dict[str, Normalization] = {method: method for method in get_args(Normalization)}
    return named.get(channel_name.casefold(), "zscore")


def target_spacing(spacings: Sequence[Vector3], shapes: Sequence[Size3]) -> Vector3:
    """Median spacing of all scans; of a much coarser axis the 10th percentile, but never finer than the others.

    `shapes` are in voxels at each scan's own spacing, cropped to the non-zero box.
    """
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(target.argmax())
    others = np.delete(target, worst)
    few_slices = shape[worst] * ANISOTROPY_THRESHOLD < np.delete(shape, worst).min()
    if target[worst] > ANISOTROPY_THRESHOLD * others.max() and few_slices:
        finer = float(np.percentile([spacing[worst] for spacing in spacings], 10))
        target[worst] = finer if finer >= others.max() else others.max() + 1e-5
    z, y, x = target.tolist()
    return (z, y, x)


def start_patch(spacing_mm: Vector3, size_vox: Size3) -> Size3:
    """The first patch to try: as long in every direction in millimetres, 256^3 voxels, clipped to the image."""
    edge_mm = (START_PATCH_VOXELS * np.prod(spacing_mm)) ** (1 / 3)
    z, y, x = (min(n, max(1, round(edge_mm / s))) for n, s in zip(size_vox, spacing_mm, strict=True))
    return (z, y, x)


def coarser_spacing(spacing_mm: Vector3) -> Vector3:
    """One step of the low-resolution search: only axes more than twice finer than the coarsest, or else all."""
    coarsest = max(spacing_mm)
    fine = [coarsest / s > 2 for s in spacing_mm]
    z, y, x = (s * COARSENING_STEP if f or not any(fine) else s for s, f in zip(spacing_mm, fine, strict=True))
    return (z, y, x)


def topology(spacing_mm: Vector3, patch_vox: Size3, *, max_levels: int = 6) -> Topology:
    """Pool while an axis has room, the finest axes first; convolve along an axis once it is not twice too coarse.

    nnU-Net itself has no `max_levels`: its largest patches get seven.
    """
    spacing, size, kernel = spacing_mm, patch_vox, (1, 1, 1)
    strides: list[Size3] = [(1, 1, 1)]
    kernels: list[Size3] = []
    while len(strides) < max_levels and (axes := _axes_to_pool(spacing, size)):
        kernel = _triple(3 if k == 3 or s / min(spacing) < 2 else 1 for k, s in zip(kernel, spacing, strict=True))
        stride = _triple(2 if axis in axes else 1 for axis in range(3))
        z, y, x = (s * d for s, d in zip(spacing, stride, strict=True))
        spacing, size = (z, y, x), _triple(-(-n // d) for n, d in zip(size, stride, strict=True))
        strides.append(stride)
        kernels.append(kernel)
    padded = round_up(patch_vox, total_stride(strides))
    return Topology(strides=tuple(strides), kernels=(*kernels, (3, 3, 3)), patch=padded)


def total_stride(strides: Sequence[Size3]) -> Size3:
    """Product of the strides of all levels: what every size must be divisible by."""
    return _triple(int(n) for n in np.prod(strides, axis=0))


def round_up(size_vox: Size3, divisor: Size3) -> Size3:
    """The next multiple of the divisor on every axis."""
    return _triple(-(-n // d) * d for n, d in zip(size_vox, divisor, strict=True))


def _axes_to_pool(spacing: Vector3, size: Size3) -> list[int]:
    axes = [axis for axis in range(3) if size[axis] >= 2 * MIN_BOTTLENECK_EDGE]
    finest = min((spacing[axis] for axis in axes), default=0.0)
    axes = [axis for axis in axes if spacing[axis] / finest < 2]
    alone_and_short = len(axes) == 1 and size[axes[0]] < 3 * MIN_BOTTLENECK_EDGE
    return [] if alone_and_short else axes


def _triple(values: Iterable[int]) -> Size3:
    z, y, x = values
    return (z, y, x)
