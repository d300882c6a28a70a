"""The atlas as training and prediction carry it."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rrlsam.data.prior import log_prior
from rrlsam.data.sampling import inside_mask, sample_affine
from rrlsam.geometry import Geometry, Size3, geometry_of, index_map
from rrlsam.plan import Plan, grid_geometry
from rrlsam.planning.label_offset import move_label
from rrlsam.preprocessing.preprocess import Case, window_ct
from rrlsam.scans.channel_stats import ChannelStats

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The labelled scan on the atlas grid, and the picture by which scans are aligned to it."""

    case: str
    grid: Geometry
    image: Float[Tensor, "1 c z y x"]
    """Normalised, at target spacing."""
    label: Int[Tensor, "1 z y x"]
    """Base classes, and the ignore value where nobody labelled; uint8 or int16."""
    foreground: tuple[ChannelStats, ...]
    """Intensities under the label, one entry a channel (CT clipping)."""
    alignment_image: Float[Tensor, "za ya xa"]
    """The whole atlas, coarse: the fixed image of the affine alignment."""
    alignment_geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class AtlasView:
    """What the stages see of the atlas."""

    image: Float[Tensor, "1 c z y x"]
    """On the registration grid."""
    compared: Float[Tensor, "1 c z3 y3 x3"]
    """On the grid on which registered images are compared; the very same tensor when that is the registration grid."""
    fine_label: Float[Tensor, "1 k z2 y2 x2"]
    """One-hot base classes at target spacing, plus the ignore class as last channel if there is one."""
    prior: Float[Tensor, "1 k4 z2 y2 x2"]
    """Log probability of the base classes in each voxel of the fine grid; 0 throughout if there is to be no prior."""
    has_ignore: bool
    swapped: tuple[int, ...] = ()
    """For each channel of `fine_label` that of its counterpart in the mirror; empty if nothing is mirrored."""

    def to(self, device: torch.device) -> "AtlasView":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def mirrored(self, axes: tuple[int, ...]) -> "AtlasView":
        """The same, mirrored along some axes (0 = z, 1 = y, 2 = x)."""
        if not axes:
            return self
        return self._each(lambda tensor: tensor.flip([axis + 2 for axis in axes]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "AtlasView":
        image = change(self.image)
        return AtlasView(
            image=image,
            compared=image if self.compared is self.image else change(self.compared),
            fine_label=change(self.fine_label),
            prior=change(self.prior),
            has_ignore=self.has_ignore,
            swapped=self.swapped,
        )


def has_prior(plan: Plan, ablations: Collection[str]) -> bool:
    """Whether the warped label's log probabilities are added to the logits.

    Not without refinement: the pseudo label would then be the prior itself.
    """
    return plan.refinement_iterations > 0 and not {"no_prior", "no_refinement", "bilevel"} & set(ablations)


def view_atlas(atlas: Atlas, plan: Plan, *, prior: bool = True) -> AtlasView:
    """Bring an atlas to the grids of a plan; `prior`: whether its label is to be a prior of the segmentation."""
    labels, grid = plan.labels, plan.grid
    values = torch.arange(len(labels.declared), dtype=atlas.label.dtype)
    fine = (atlas.label[..., None] == values).float().movedim(-1, 1)
    base = fine[:, : labels.n_classes]
    image = _resized(atlas.image, grid.registration_size_vox)
    known = log_prior(base, plan.data.spacing_mm) if prior else torch.zeros_like(base)
    one_grid = grid.comparison_size_vox == grid.registration_size_vox
    return AtlasView(
        image=image,
        compared=image if one_grid else _resized(atlas.image, grid.comparison_size_vox),
        fine_label=fine,
        prior=known.contiguous(memory_format=torch.channels_last_3d),
        has_ignore=labels.ignore is not None,
        swapped=() if plan.reflection is None else plan.reflection.swapped,
    )


def _resized(volume: Tensor, size: Size3) -> Tensor:
    """The same field of view in other voxels; the very same tensor where nothing changes."""
    if tuple(volume.shape[2:]) == size:
        return volume
    return F.interpolate(volume, size=list(size), mode="trilinear", align_corners=False)


def split_ignore(
    label: Float[Tensor, "b k z y x"], has_ignore: bool
) -> tuple[Float[Tensor, "b k2 z y x"], Float[Tensor, "b 1 z y x"] | None]:
    """Warped one-hot labels to base classes and the weight of each voxel (0 where the ignore label came to lie).

    Where part of a voxel is labelled, its classes sum to 1 over that part; none has any where nothing is.
    """
    if not has_ignore:
        return label, None
    known = 1.0 - label[:, -1:]
    return label[:, :-1] / known.clamp(min=1e-6), known


def make_atlas(
    case: Case, canonical_label: sitk.Image, plan: Plan, foreground: tuple[ChannelStats, ...], alignment: sitk.Image
) -> Atlas:
    """Bring a prepared scan and its label, turned but neither cropped nor moved, to the atlas grid of a plan."""
    grid = grid_geometry(plan, case.info.canonical)
    picture = torch.from_numpy(sitk.GetArrayFromImage(alignment).astype(np.float32))
    return Atlas(
        case=case.info.case,
        grid=grid,
        image=image_on_grid(case, grid, plan, foreground)[None],
        label=label_on_grid(canonical_label, plan.atlas_label_shift_vox, grid, len(plan.labels.declared))[None],
        foreground=foreground,
        alignment_image=picture,
        alignment_geometry=geometry_of(alignment),
    )


def image_on_grid(
    case: Case, grid: Geometry, plan: Plan, foreground: tuple[ChannelStats, ...]
) -> Float[Tensor, "c z y x"]:
    """A prepared scan on a grid of its own world, its intensities as the networks see them."""
    image = torch.from_numpy(window_ct(case.array, plan.data, foreground))
    return sample_affine(image, index_map(grid, case.geometry), grid.shape)


def label_on_grid(
    canonical_label: sitk.Image,
    shift_vox: Size3,
    grid: Geometry,
    n_values: int,
    grid_to_label: np.ndarray | None = None,
) -> Int[Tensor, "z y x"]:
    """A label, moved by whole voxels, on the atlas grid; `grid_to_label`: (4, 4) world matrix, LPS mm;
    None: one world.

    It follows the largest of its linearly interpolated classes. A class that gets lost that way keeps its nearest voxel
    each; that is logged.
    """
    values = torch.from_numpy(move_label(sitk.GetArrayFromImage(canonical_label), shift_vox)).long()
    matrix = index_map(grid, geometry_of(canonical_label), grid_to_label)
    best = torch.full(grid.shape, -1.0)
    chosen = torch.zeros(grid.shape, dtype=torch.int16)
    present = torch.bincount(values.flatten(), minlength=n_values).nonzero().flatten().tolist()
    for value in sorted({0, *present}):  # beyond the field of view lies background, even if there is none within
        share = sample_affine((values == value).float()[None], matrix, grid.shape, padding="zeros")[0]
        if value == 0:
            share = share + 1e-6 + (1.0 - inside_mask(tuple(values.shape), matrix, grid.shape)[0])
        chosen[share > best] = value
        best = torch.maximum(best, share)
    for value in present:
        if not (chosen == value).any():
            _log.warning("label %d is thinner than a voxel of the atlas grid; its nearest voxels are kept", value)
            _keep_nearest(chosen, values, value, np.linalg.inv(matrix))
    return chosen


def _keep_nearest(chosen: Tensor, values: Tensor, value: int, to_grid: np.ndarray) -> None:
    index = (values == value).nonzero().numpy()[:, ::-1]
    mapped = np.rint(index @ to_grid[:3, :3].T + to_grid[:3, 3]).astype(int)[:, ::-1]
    inside = ((mapped >= 0) & (mapped < np.array(chosen.shape))).all(1)
    z, y, x = mapped[inside].T
    chosen[z, y, x] = value
