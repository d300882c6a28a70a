"""Registration of two images without a trained model: affine, then a field by optimisation. The Python interface."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from rrlsam.data.batches import View, view_to
from rrlsam.data.sampling import inside_mask, sample_affine
from rrlsam.engine.device import Device, choose_device
from rrlsam.errors import BadInputError, UsageError
from rrlsam.geometry import Geometry, finest_axes_coarser, geometry_of, index_map, make_geometry, to_sitk
from rrlsam.losses.similarity import SquaredDifference, mind
from rrlsam.plan import MAX_COMPARED_VOXELS
from rrlsam.preprocessing.affine import align, alignment_image, without_padding
from rrlsam.preprocessing.normalize import zscore
from rrlsam.preprocessing.resample import smooth_and_sample
from rrlsam.registration.pair import PairTransform, Registration, on_scan
from rrlsam.scans.volume import channels_first, to_canonical
from rrlsam.settings import METRICS, OPTIMISATION_ITERATIONS
from rrlsam.stages.refinement import refine

SMALLEST_AXIS = 4
COARSENING_STEP = 1.05
MARGIN_SHARE = 0.15
"""Of the other scan's extent, on each side."""
WORTHWHILE_PART = 0.5
"""Of a scan's voxels: a smaller part is worked on alone, in finer voxels."""


def register_images(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    metric: str = "lncc",
    iterations: int = OPTIMISATION_ITERATIONS,
    device: str = "auto",
) -> PairTransform:
    """Register a moving image to a fixed one: affine, then a diffeomorphic field, coarse to fine.

    3-D images of equally many channels, on any grids. `metric`: one of METRICS. `iterations`: steps at each resolution;
    0: affine only. Raises BadInputError for images that cannot be registered.
    """
    found = optimise(fixed, moving, metric=metric, iterations=iterations, device=choose_device(device))
    return on_scan(found, geometry_of(fixed), geometry_of(moving))


def register_arrays(
    fixed: np.ndarray,
    moving: np.ndarray,
    *,
    fixed_spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    moving_spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    metric: str = "lncc",
    iterations: int = OPTIMISATION_ITERATIONS,
    device: str = "auto",
) -> PairTransform:
    """`register_images` for arrays (z, y, x) or (c, z, y, x), spacings z, y, x; both worlds begin at the first voxel.

    `field_in_voxels` of the result is in voxels of the fixed array.
    """
    images = (_image_of(fixed, fixed_spacing_mm), _image_of(moving, moving_spacing_mm))
    return register_images(*images, metric=metric, iterations=iterations, device=device)


def optimise(fixed: sitk.Image, moving: sitk.Image, *, metric: str, iterations: int, device: Device) -> Registration:
    """The affine and the flow between two images, on the moving one's grid, so that it is interpolated but once."""
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is unknown; there are {', '.join(METRICS)}")
    (a, still), (b, own) = checked(fixed, "fixed"), checked(moving, "moving")
    if len(a) != len(b):
        raise BadInputError(f"the fixed scan has {len(a)} channel(s), the moving one {len(b)}; they must be the same")
    alignment = align(alignment_image(b, own), alignment_image(a, still))
    to_fixed = np.array(alignment.matrix)
    grid = working_grid(shared_part(own, still, np.linalg.inv(to_fixed)))
    coarse = still.with_spacing([max(s, g) for s, g in zip(still.spacing_mm, grid.spacing_mm, strict=True)])
    matrix = index_map(grid, coarse, to_fixed)
    target = sample_affine(_on(a, still, coarse)[0], matrix, grid.shape)[None]
    inside = inside_mask(coarse.shape, matrix, grid.shape)[None]
    source, similarity = _on(b, own, grid), None
    if metric == "mind":
        source, target, similarity = mind(source), mind(target), SquaredDifference
    view = view_to(View(image=target, clean=target, inside=inside, start=(0, 0, 0)), device.place)
    rest = torch.zeros((1, 3, *(-(-n // 2) for n in grid.shape)), device=device.place)
    flow = refine(rest, source.to(device.place), view, iterations, similarity)
    to_moving = np.linalg.inv(to_fixed)
    return Registration(
        grid=grid, fixed_to_grid=to_moving, fixed_to_moving=to_moving, flow=flow, alignment=alignment.method
    )


def checked(image: sitk.Image, name: str) -> tuple[np.ndarray, Geometry]:
    """The canonical array (c, z, y, x) of an image and its grid; BadInputError if it cannot be registered."""
    if image.GetDimension() != 3 or min(image.GetSize()) < SMALLEST_AXIS:
        raise BadInputError(
            f"the {name} scan has {tuple(image.GetSize())} voxels; each of three axes needs {SMALLEST_AXIS} or more"
        )
    turned = to_canonical(image)
    array = np.stack([without_padding(channel) for channel in channels_first(turned).astype(np.float32)])
    if not np.isfinite(array).all():
        raise BadInputError(f"the {name} scan holds NaN or infinite voxels; replace them by real intensities")
    if not all(float(channel.std()) > 0 for channel in array):
        raise BadInputError(f"the {name} scan is one single intensity; there is nothing to register")
    return array, geometry_of(turned)


def shared_part(own: Geometry, other: Geometry, to_own: np.ndarray) -> Geometry:
    """The part of a scan's grid where another one lies, with a margin; all of it where that is most of it.

    `to_own`: (4, 4), from the other one's world.
    """
    index = index_map(other, own, to_own)
    seen = other.corners_vox @ index[:3, :3].T + index[:3, 3]
    low, high = seen.min(axis=0)[::-1], seen.max(axis=0)[::-1]
    margin = MARGIN_SHARE * (high - low)
    start = np.clip(np.floor(low - margin), 0, np.array(own.shape) - SMALLEST_AXIS).astype(int)
    stop = np.clip(np.ceil(high + margin) + 1, start + SMALLEST_AXIS, own.shape).astype(int)
    part = own.box(start.tolist(), stop.tolist())
    return part if np.prod(part.shape) < WORTHWHILE_PART * np.prod(own.shape) else own


def working_grid(own: Geometry, most_voxels: int = MAX_COMPARED_VOXELS) -> Geometry:
    """The moving scan's grid, made coarser as far as speed demands, its finest axes first."""
    spacing = own.spacing_mm
    while np.prod(np.array(own.extent_mm) / spacing) > most_voxels:
        spacing = finest_axes_coarser(spacing, COARSENING_STEP)
    return own if spacing == own.spacing_mm else own.with_spacing(spacing)


def _on(array: np.ndarray, source: Geometry, grid: Geometry) -> Tensor:
    """Channels (1, c, z, y, x) on a grid over the same field of view, with mean 0 and deviation 1 each."""
    if grid != source:
        images = [smooth_and_sample(to_sitk(channel, source), grid, sitk.sitkLinear) for channel in array]
        array = np.stack([sitk.GetArrayFromImage(image) for image in images])
    return torch.from_numpy(np.stack([zscore(channel) for channel in array]))[None]


def _image_of(array: np.ndarray, spacing_mm: Sequence[float]) -> sitk.Image:
    if array.ndim not in (3, 4):
        raise UsageError(f"an array of shape {array.shape} is no volume; (z, y, x) or (c, z, y, x) is expected")
    channels = array[None] if array.ndim == 3 else array
    grid = make_geometry(channels.shape[1:], np.diag([*list(spacing_mm)[::-1], 1.0]))
    return sitk.Compose([to_sitk(channel.astype(np.float32), grid) for channel in channels])
