"""One scan through one model: aligned, registered and segmented on the atlas grid, then carried to the native grid."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.atlas import AtlasView, has_prior, split_ignore, view_atlas
from rrlsam.data.augment import views_to_average
from rrlsam.data.batches import Batch, View, with_shape
from rrlsam.data.sampling import TrainingScan, affine_points, grid_to_scan, inside_mask, sample_affine
from rrlsam.engine.device import Device, choose_device
from rrlsam.geometry import Geometry, Reflection, Size3, index_map, slabs, tiles, to_sitk
from rrlsam.models.checkpoint import Checkpoint
from rrlsam.nets.build import Networks, build_networks
from rrlsam.nets.displacement import sample, warp
from rrlsam.nets.flow import Flow
from rrlsam.plan import Plan
from rrlsam.prediction.joint_refinement import jointly_refined
from rrlsam.preprocessing.nearer_looks import align_closely, make_target
from rrlsam.preprocessing.preprocess import prepare_image, window_ct
from rrlsam.registration.pair import Registration
from rrlsam.scans.likeness import likeness
from rrlsam.stages.pseudo_labels import class_prior
from rrlsam.stages.refinement import refined_flow, unfold_on

SLAB_VOXELS = 1 << 21
"""Native voxels that are resampled at once; bounds the memory that class probabilities take."""


@dataclass(frozen=True, kw_only=True)
class OnGrid:
    """What one model says of one scan, on its atlas grid."""

    grid: Geometry
    atlas_to_case: np.ndarray
    """(4, 4) world matrix, LPS mm."""
    probabilities: Float[Tensor, "k z y x"]
    """Segmentation, base classes."""
    displacement: Float[Tensor, "1 3 z y x"]
    """Voxels of the grid, component order x, y, z; pulls the atlas. By images and, if asked for, the segmentation."""
    image_displacement: Float[Tensor, "1 3 z y x"]
    """The same by images alone: what the segmentation began with, and can be compared with."""
    atlas_label: Float[Tensor, "1 k z y x"]
    """One-hot base classes, un-warped; where nobody labelled the atlas, the model's own segmentation of it."""
    alignment: str
    """How the affine alignment ended: affine or centre."""
    likeness: float | None = None
    """Of the scan and the warped atlas: see rrlsam.scans.likeness."""


class Model:
    """A trained model, ready to predict. SAM is not part of it."""

    def __init__(self, checkpoint: Checkpoint, device: Device) -> None:
        self.plan: Plan = checkpoint.plan
        self.provenance = checkpoint.provenance
        self.atlas, self._device = checkpoint.atlases[0], device
        self._nets: Networks = build_networks(self.plan, seed=0)
        self._nets.load_state_dict(checkpoint.networks)
        self._nets.to(device.place).eval()
        self._still = view_atlas(self.atlas, self.plan, prior=has_prior(self.plan, self.provenance.ablations))
        self._view = self._still.to(device.place)
        self._target = make_target(
            to_sitk(self.atlas.alignment_image.numpy(), self.atlas.alignment_geometry),
            self.atlas.image[0].numpy(),
            self.atlas.grid,
            partial(window_ct, data=self.plan.data, foreground=self.atlas.foreground),
        )
        self._label: Tensor | None = None
        self._copy: Model | None = None

    def on_processor(self) -> "Model":
        """The same model on the processor, where it is copied once."""
        if self._copy is None:
            other = copy.copy(self)
            other._device = choose_device("cpu")
            other._nets = build_networks(self.plan, seed=0).eval()
            other._nets.load_state_dict(self._nets.state_dict())
            other._view = self._still
            self._copy = other
        return self._copy

    @torch.no_grad()
    def predict(
        self,
        image: sitk.Image,
        *,
        average: bool = True,
        overlap: float = 0.5,
        refinement_iterations: int | None = None,
        joint: bool = True,
    ) -> OnGrid:
        """Predict a float32 scan in its own grid: register it, then segment it with the warped label as a prior.

        `average`: over turned views of the scan, where the network sees it whole, and its mirror image, if the plan
        has a reflection; `overlap`: share by which neighbouring patches overlap; `refinement_iterations`: steps by
        which the network's field is refined, None: as planned; `joint`: whether the segmentation is then to help the
        registration.
        """
        scan, alignment = self._prepare(image)
        steps = self.plan.prediction_refinement_iterations if refinement_iterations is None else refinement_iterations
        batch = self._batch(scan)
        flow, by_images = unfold_on(self.atlas.grid.shape, self._flow(self._view, batch, steps))
        probabilities = self._average(scan, by_images, average=average, overlap=overlap)
        if average and self.plan.reflection is not None:
            probabilities = (probabilities + self._in_the_mirror(scan, self.plan.reflection, steps, overlap)) / 2
        best = by_images
        if joint and steps > 1 and self.segmentation_can_help:
            best = unfold_on(self.atlas.grid.shape, self._joint_flow(flow, batch, probabilities, steps))[1]
        return OnGrid(
            grid=self.atlas.grid,
            atlas_to_case=scan.atlas_to_case,
            probabilities=probabilities,
            displacement=best.cpu(),
            image_displacement=by_images.cpu(),
            atlas_label=self._whole_label(),
            alignment=alignment,
            likeness=self._likeness(scan, by_images),
        )

    @torch.no_grad()
    def register(
        self,
        fixed: sitk.Image,
        moving: sitk.Image | None = None,
        *,
        refinement_iterations: int = 0,
        segment: bool = False,
    ) -> Registration:
        """Register the atlas, or another scan of the trained kind, to a float32 scan in its own grid.

        `segment`: whether the segmentation of the fixed scan, in one view of it, then helps to register the atlas; at
        least two steps and a label without ignored voxels are needed for that.
        """
        scan, alignment = self._prepare(fixed)
        if moving is None:
            batch = self._batch(scan)
            flow = self._flow(self._view, batch, refinement_iterations)
            if segment:
                field = unfold_on(self.atlas.grid.shape, flow)[1]
                seen = self._average(scan, field, average=False, overlap=0.5)
                flow = self._joint_flow(flow, batch, seen, refinement_iterations)
            to_moving, alignments = np.eye(4), (alignment,)
        else:
            other, moved = self._prepare(moving)
            seen = self._batch(other)
            if seen.compared is None:
                raise ValueError("the batch holds nothing to compare")
            view = replace(self._view, image=seen.whole.image, compared=seen.compared.image)
            flow = self._flow(view, self._batch(scan), refinement_iterations)
            to_moving, alignments = other.atlas_to_case, (alignment, moved)
        to_grid = np.linalg.inv(scan.atlas_to_case)
        return Registration(
            grid=self.atlas.grid,
            fixed_to_grid=to_grid,
            fixed_to_moving=to_moving @ to_grid,
            flow=flow,
            alignment="affine" if set(alignments) == {"affine"} else "centre",
        )

    def _flow(self, moving: AtlasView, batch: Batch, steps: int) -> Flow:
        return refined_flow(self._nets, moving, batch, steps, autocast=self._device.autocast())

    def _joint_flow(self, flow: Flow, batch: Batch, probabilities: Float[Tensor, "k z y x"], steps: int) -> Flow:
        """The registration that the segmentation helps, after `steps` by images alone: half as many more."""
        if batch.compared is None:
            raise ValueError("the batch holds nothing to compare")
        seen = probabilities[None].to(self._device.place)
        return jointly_refined(flow, self._view, batch.compared, seen, steps // 2)

    @property
    def segmentation_can_help(self) -> bool:
        """Whether the segmentation can help the registration: not where parts of the atlas are not labelled."""
        return not self._view.has_ignore

    def _whole_label(self) -> Float[Tensor, "1 k z y x"]:
        """The atlas's one-hot label; where nobody labelled it, the segmentation of its image, which is made once."""
        if self._label is None:
            label, known = split_ignore(self._still.fine_label, self._still.has_ignore)
            if known is not None:
                image, still = self.atlas.image.to(self._device.place), affine_points(self.atlas.grid.shape, np.eye(4))
                seen = self._segment(image, still.to(image), overlap=0.5).cpu()
                best, label = seen.argmax(1, keepdim=True), label.clone()
                for value in range(label.shape[1]):  # one by one, since all at once would take several times the label
                    label[:, value : value + 1] += (1.0 - known) * (best == value)
            self._label = label
        return self._label

    def _likeness(self, scan: TrainingScan, displacement: Float[Tensor, "1 3 z y x"]) -> float | None:
        grid = self.atlas.grid
        matrix = grid_to_scan(grid, scan)
        image = sample_affine(scan.image[:1], matrix, grid.shape)[0]
        inside = inside_mask(tuple(scan.image.shape[1:]), matrix, grid.shape)[0]
        warped = warp(self.atlas.image[:, :1], displacement.cpu())[0, 0]
        return likeness(image.numpy(), warped.numpy(), inside.numpy() > 0)

    def _prepare(self, image: sitk.Image) -> tuple[TrainingScan, str]:
        prepared = prepare_image(image, self.plan.data)
        alignment = align_closely(self._target, prepared.array, prepared.stored)
        array = window_ct(prepared.array, self.plan.data, self.atlas.foreground)
        matrix = np.array(alignment.matrix)
        scan = TrainingScan(image=torch.from_numpy(array), geometry=prepared.stored, atlas_to_case=matrix)
        return scan, alignment.method

    def _batch(self, scan: TrainingScan) -> Batch:
        """The scan as registration sees it, on the device."""
        whole = self._on(self.plan.grid.registration_size_vox, scan)
        same = self.plan.grid.comparison_size_vox == self.plan.grid.registration_size_vox
        compared = whole if same else self._on(self.plan.grid.comparison_size_vox, scan)
        return Batch(cases=("",), whole=whole, patch=whole, compared=compared).to(self._device.place)

    def _on(self, size: Size3, scan: TrainingScan) -> View:
        grid = with_shape(self.atlas.grid, size)
        matrix = grid_to_scan(grid, scan)
        image = sample_affine(scan.image, matrix, grid.shape)[None]
        inside = inside_mask(tuple(scan.image.shape[1:]), matrix, grid.shape)[None]
        return View(image=image, clean=image, inside=inside, start=(0, 0, 0))

    def _average(
        self, scan: TrainingScan, displacement: Float[Tensor, "1 3 z y x"], *, average: bool, overlap: float
    ) -> Float[Tensor, "k z y x"]:
        """Class probabilities on the fine grid, averaged over views of the scan that are brought back to it."""
        grid = self.atlas.grid
        average = average and self.plan.grid.whole  # patches overlap: every voxel is averaged over several of them
        views = views_to_average(self.plan.augmentation, grid.shape, grid.spacing_mm) if average else [np.eye(4)]
        total = torch.zeros((self.plan.labels.n_classes, *grid.shape))
        for view in views:
            image = sample_affine(scan.image, grid_to_scan(grid, scan, view), grid.shape)[None]
            places = affine_points(grid.shape, view).to(displacement)
            places = places + sample(displacement, places)
            seen = self._segment(image.to(self._device.place), places, overlap)[0].cpu()
            total += sample_affine(seen, np.linalg.inv(view), grid.shape)
        return total / len(views)

    def _in_the_mirror(
        self, scan: TrainingScan, reflection: Reflection, steps: int, overlap: float
    ) -> Float[Tensor, "k z y x"]:
        """Class probabilities by the scan's mirror image, registered and segmented by itself, as the scan lies."""
        mirrored = replace(scan, atlas_to_case=scan.atlas_to_case @ reflection.world)
        _, field = unfold_on(self.atlas.grid.shape, self._flow(self._view, self._batch(mirrored), steps))
        seen = self._average(mirrored, field, average=True, overlap=overlap)
        across = reflection.on_voxels(self.atlas.grid)
        return sample_affine(seen[list(reflection.swapped[: len(seen)])], across, self.atlas.grid.shape)

    def _segment(self, image: Tensor, places: Tensor, overlap: float) -> Tensor:
        """Class probabilities of the AP decoder over a whole fine image; `places`: where its voxels read the atlas."""
        patch = self.plan.grid.patch_vox
        total = image.new_zeros((1, self.plan.labels.n_classes, *image.shape[2:]), dtype=torch.float32)
        weights = torch.zeros_like(total[:, :1])
        importance = gaussian_importance(patch).to(image.device)
        for box in tiles(tuple(image.shape[2:]), patch, overlap):
            total[(..., *box)] += self._probabilities(image[(..., *box)], places[(..., *box)]) * importance
            weights[(..., *box)] += importance
        return total / weights

    def _probabilities(self, image: Tensor, places: Tensor) -> Tensor:
        nets, prior = self._nets, class_prior(self._view, places)
        with self._device.autocast():
            prompt = (nets.general_decoder(nets.general_encoder(image)) + prior).softmax(1)
            logits = nets.auto_prompt_decoder(nets.medical_encoder(image), prompt) + prior
        return logits.float().softmax(1)


def gaussian_importance(patch: Size3) -> Float[Tensor, "1 1 z y x"]:
    """Weight of a patch's voxels: a Gaussian of an eighth of its edge, never 0, 1 in the middle."""
    profiles = []
    for n in patch:
        offset = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / (n / 8)
        profiles.append(torch.exp(-0.5 * offset.square()))
    z, y, x = profiles
    weight = z[:, None, None] * y[:, None] * x
    return weight.clamp(min=1e-4)[None, None]


Kind = Literal["segmentation", "registration", "image_registration"]
"""The segmentation's probabilities, the atlas's label warped as well as possible, or warped by images alone."""


def to_native(
    results: Sequence[OnGrid], native: Geometry, kind: Kind
) -> Iterator[tuple[slice, Float[Tensor, "k z y x"]]]:
    """Base-class probabilities on the scan's own grid, slab by slab along z, averaged over models.

    Outside the atlas grid all is background.
    """
    for where, slab in slabs(native, SLAB_VOXELS):
        parts = [_slab(result, slab, kind) for result in results]
        yield where, torch.stack(parts).mean(0)


def _slab(result: OnGrid, slab: Geometry, kind: Kind) -> Tensor:
    matrix = index_map(slab, result.grid, np.linalg.inv(result.atlas_to_case))
    if kind == "segmentation":
        field, read = None, result.probabilities[None]
    else:
        field, read = result.displacement if kind == "registration" else result.image_displacement, result.atlas_label
    found = torch.zeros((read.shape[1], *slab.shape))
    found[0] = 1.0
    box = _box_that_reaches(result.grid.shape, matrix, slab.shape, 0.0 if field is None else float(field.abs().max()))
    start = np.eye(4)
    start[:3, 3] = [axis.start for axis in reversed(box)]
    points = affine_points([axis.stop - axis.start for axis in box], matrix @ start)
    if points.numel():
        inside = sample(read, points if field is None else points + sample(field, points), padding="zeros")[0]
        found[(slice(None), *box)] = torch.cat([1.0 - inside[1:].sum(0, keepdim=True), inside[1:]])
    return found


def _box_that_reaches(grid: Size3, matrix: np.ndarray, shape: Size3, reach: float) -> tuple[slice, slice, slice]:
    """The voxels of a (z, y, x) volume that `matrix` carries into a grid or within `reach` voxels of it."""
    corners = product(*((-1.0 - reach, n + reach) for n in grid[::-1]))
    there = np.linalg.inv(matrix) @ np.array([(*corner, 1.0) for corner in corners]).T
    low, high = there[2::-1].min(1), there[2::-1].max(1)
    z, y, x = (
        slice(min(n, max(0, int(np.floor(a)))), max(0, min(n, int(np.ceil(b)) + 1)))
        for a, b, n in zip(low, high, shape, strict=True)
    )
    return z, y, x
