"""The default planner: nnU-Net's rules, applied to the box around one atlas's structures. Axis order z, y, x."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Size3, Vector3, finest_axes_coarser, make_geometry
from rrlsam.labels import LabelScheme
from rrlsam.plan import (
    MAX_ENCODER_PARAMETERS,
    SCHEMA,
    AugmentationPlan,
    DataPlan,
    GridPlan,
    NetworkPlan,
    Normalization,
    Plan,
    StagePlan,
)
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint

from .topology import (
    COARSENING_STEP,
    MIN_BOTTLENECK_EDGE,
    coarser_spacing,
    normalization,
    round_up,
    start_patch,
    target_spacing,
    topology,
    total_stride,
)

MARGIN_VOX, MARGIN_SHARE, MARGIN_MM = 8, 0.15, 10.0
"""Room around the structures, on each side: the largest of the three."""
MARGIN_MM_AT_MOST_VOX = 24
"""But millimetres count no further: a mouse is small, and its voxels are too."""
WORTHWHILE_CUT = 0.25
"""An axis of which the margins would cut off less than this share is kept whole."""
MIN_FINE_EDGE = 12
"""Along the finest axes a grid has room for at least one pooling."""
FEATURE_MAPS = 30
"""Maps of a level's width that stage 2 keeps for the gradient: about 4 in each of 3 passes of the encoder (two
convolutions, two norms) and 6 in each of 3 passes of the decoder (the same, the upsampled map and the skip)."""
CLASS_MAPS = 12
"""Maps of n_classes channels at full size: logits, probabilities, targets and warped labels, of both branches."""
BYTES = 4
MAX_WIDTH = 256
BATCH_SIZE = 1
"""The paper's; in a given time, more steps are worth more than larger ones."""
MASKED_NORM_BELOW = 0.75
LEAST_MIXED = 0.1
"""Share of scans with slices along another axis than most, from which on a data set is of both kinds."""
SMALLEST_PATCH_SHARE = 1 / 16
"""Of the grid, else the spacing is made coarser: networks would meet each place too rarely, and a scan would take
hundreds of patches. nnU-Net plans a second, coarser configuration below a quarter."""


@dataclass(frozen=True)
class Box:
    """A part of the atlas at target spacing, in voxels; `start` may be negative."""

    start: Size3
    size: Size3

    def grown(self, size: Size3) -> "Box":
        """The box with another size about the same centre."""
        z, y, x = (a - (new - old) // 2 for a, old, new in zip(self.start, self.size, size, strict=True))
        return Box((z, y, x), size)


@dataclass(frozen=True)
class OneShotPlanner:
    """Plans one atlas's training; other fields make other planners."""

    name: str = "default"
    first_width: int = 16
    max_levels: int = 5
    memory_cap_gb: float = math.inf

    def plan(
        self,
        fingerprint: Fingerprint,
        atlas: AtlasFingerprint,
        labels: LabelScheme,
        *,
        gpu_memory_target_gb: float,
        time_budget_s: float | None,
    ) -> Plan:
        """Plan; BadInputError for an atlas without structures, ResourceError if no grid fits in the memory."""
        data = data_plan(fingerprint)
        target_gb = min(gpu_memory_target_gb, self.memory_cap_gb)
        grid, network = self._grid(atlas_box(atlas, data.spacing_mm), data, labels.n_classes, target_gb)
        while math.prod(grid.patch_vox) < SMALLEST_PATCH_SHARE * math.prod(grid.size_vox):
            coarser = replace(data, spacing_mm=finest_axes_coarser(data.spacing_mm, COARSENING_STEP))
            box = atlas_box(atlas, coarser.spacing_mm)
            try:
                grid, network = self._grid(box, coarser, labels.n_classes, target_gb)
            except ResourceError:  # fewer, but larger steps: what there is has to do
                break
            data = coarser
        return Plan(
            schema=SCHEMA,
            planner=self.name,
            dataset=fingerprint.dataset,
            channel_names=fingerprint.channel_names,
            labels=labels,
            atlases=(atlas.case,),
            atlas_label_shift_vox=atlas.label_offset.shift_vox,
            reflection=atlas.reflection,
            data=data,
            grid=grid,
            network=network,
            teacher_axes=(slice_axis(data.spacing_mm),),
            distillation=StagePlan(iterations=500, learning_rate=1e-3, batch_size=BATCH_SIZE),
            joint=StagePlan(iterations=500, learning_rate=1e-3, batch_size=BATCH_SIZE),
            mutual=StagePlan(iterations=1000, learning_rate=1e-3, batch_size=BATCH_SIZE),
            rounds=2,
            augmentation=augmentation_plan(),
            time_budget_s=time_budget_s,
        )

    def _grid(self, box: Box, data: DataPlan, n_classes: int, target_gb: float) -> tuple[GridPlan, NetworkPlan]:
        """One grid for everything if it fits; else half of the memory for a coarse grid, half for a patch."""
        network, size = self._network(box.size, data)
        whole_gb = training_memory_gb(size, network, n_classes)
        if whole_gb <= target_gb:
            return _grid_plan(box.grown(size), size, size), network
        smallest_gb = whole_gb
        for raw_patch in self._patches(box.size, data):
            network, patch = self._network(raw_patch, data)
            patch_gb = training_memory_gb(patch, network, n_classes)
            if patch_gb <= target_gb / 2:
                size = round_up(box.size, total_stride(network.strides))
                coarse = registration_size(size, data.spacing_mm, network, n_classes, target_gb / 2)
                whole = size in (coarse, patch)
                return _grid_plan(box.grown(size), *((size, size) if whole else (coarse, patch))), network
            smallest_gb = min(smallest_gb, 2 * patch_gb)
        needed = math.ceil(smallest_gb * 1000) / 1000
        raise ResourceError(
            f"a GPU memory target of {target_gb:g} GB is too small for a grid of {box.size} voxels with {n_classes} "
            f"classes; the smallest that would do is {needed:.3f} GB"
        )

    def _network(self, patch: Size3, data: DataPlan) -> tuple[NetworkPlan, Size3]:
        """The network for a patch, and the patch padded to its strides."""
        made = topology(data.spacing_mm, patch, max_levels=self.max_levels)
        widths = encoder_widths(len(data.normalization), made.kernels, first=self.first_width)
        return NetworkPlan(widths=widths, strides=made.strides, kernels=made.kernels), made.patch

    def _patches(self, size: Size3, data: DataPlan) -> Iterator[Size3]:
        """Ever smaller patches: each time the axis that covers most of the grid loses one total stride."""
        spacing = data.spacing_mm
        patch = list(start_patch(spacing, size))
        fine = _fine(spacing)
        floor = [MIN_FINE_EDGE if f else min(MIN_BOTTLENECK_EDGE, n) for f, n in zip(fine, size, strict=True)]
        patch = [max(p, f) for p, f in zip(patch, floor, strict=True)]
        while True:
            z, y, x = patch
            yield (z, y, x)
            axes = [axis for axis in range(3) if patch[axis] > floor[axis]]
            if not axes:
                return
            strides = topology(spacing, (z, y, x), max_levels=self.max_levels).strides
            axis = max(axes, key=lambda axis: patch[axis] / size[axis])
            patch[axis] = max(floor[axis], patch[axis] - total_stride(strides)[axis])


def data_plan(fingerprint: Fingerprint) -> DataPlan:
    """Target spacing of all scans, and how each channel is normalised."""
    scans = fingerprint.scans
    methods: tuple[Normalization, ...] = tuple(normalization(name) for name in fingerprint.channel_names)
    kept = float(np.median([math.prod(scan.cropped_size_vox) / math.prod(scan.size_vox) for scan in scans]))
    return DataPlan(
        spacing_mm=mixed_spacing([s.spacing_mm for s in scans])
        or target_spacing([s.spacing_mm for s in scans], [s.cropped_size_vox for s in scans]),
        normalization=methods,
        normalize_inside_nonzero=tuple(method == "zscore" and kept < MASKED_NORM_BELOW for method in methods),
    )


def mixed_spacing(spacings: Sequence[Vector3]) -> Vector3 | None:
    """Along each axis the median of the scans whose slices are not stacked along it; None if all are stacked alike.

    The hearts of two people may be cut 5 degrees apart, and so along two axes of the body; a median of both kinds would
    be as coarse as slices along the one and leave the other kind nothing of its planes.
    """
    stacked = [slice_axis(spacing) for spacing in spacings if not all(_fine(spacing))]
    usual = max(stacked, key=stacked.count, default=0)
    if len(stacked) - stacked.count(usual) < LEAST_MIXED * len(spacings) or not stacked:
        return None
    z, y, x = (
        float(np.median([spacing[axis] for spacing in spacings if _fine(spacing)[axis]] or [max(map(max, spacings))]))
        for axis in range(3)
    )
    return (z, y, x)


def slice_axis(spacing_mm: Vector3) -> int:
    """The axis along which a scan consists of slices: that of clearly coarser voxels, else z."""
    coarsest = max(range(3), key=lambda axis: spacing_mm[axis])
    return 0 if _fine(spacing_mm)[coarsest] else coarsest


def augmentation_plan() -> AugmentationPlan:
    """Small rotations and scalings. No mirroring, be there left/right pairs or not.

    Scans are aligned with the atlas before anything is learnt, so mirrored anatomy never occurs in prediction either.
    """
    return AugmentationPlan(rotation_degrees=10.0, scale=0.1, mirror_axes=())


def atlas_box(atlas: AtlasFingerprint, spacing_mm: Vector3) -> Box:
    """The box around all structures with its margin, within the atlas (but with room for one pooling)."""
    if not atlas.structures:
        raise BadInputError(f"atlas {atlas.case}: its label is empty; choose another atlas or mend the label")
    world = np.diag([*atlas.spacing_mm[::-1], 1.0])
    whole = make_geometry(atlas.size_vox, world).with_spacing(spacing_mm).shape
    start, size = [0, 0, 0], [0, 0, 0]
    for axis, fine in enumerate(_fine(spacing_mm)):
        scale = atlas.spacing_mm[axis] / spacing_mm[axis]
        edges = (min(s.box_start[axis] for s in atlas.structures), max(s.box_stop[axis] for s in atlas.structures))
        # Both grids have one centre; edges are counted from the outer border of the first voxel, not from its centre.
        low, high = ((edge - atlas.size_vox[axis] / 2) * scale + whole[axis] / 2 for edge in edges)
        first, stop = _with_margin(low, high, whole[axis], spacing_mm[axis])
        size[axis] = max(stop - first, MIN_FINE_EDGE) if fine else stop - first
        start[axis] = first - (size[axis] - (stop - first)) // 2
    return Box((start[0], start[1], start[2]), (size[0], size[1], size[2]))


def encoder_parameters(in_channels: int, widths: Sequence[int], kernels: Sequence[Size3]) -> int:
    """Parameters of the light encoder: a level has two convolutions without bias, each with an affine norm."""
    total = 0
    for before, width, kernel in zip((in_channels, *widths), widths, kernels, strict=False):
        total += math.prod(kernel) * (before + width) * width + 4 * width
    return total


def encoder_widths(in_channels: int, kernels: Sequence[Size3], *, first: int) -> tuple[int, ...]:
    """Doubling widths under the highest cap that the parameter limit allows; then the deepest as wide as it allows."""
    doubling = [first * 2**level for level in range(len(kernels))]
    capped = [tuple(min(width, cap) for width in doubling) for cap in range(MAX_WIDTH, 0, -16)]
    widths = next(w for w in capped if encoder_parameters(in_channels, w, kernels) <= MAX_ENCODER_PARAMETERS)
    wider = [(*widths[:-1], deepest) for deepest in range(MAX_WIDTH, widths[-1], -16)]
    return next((w for w in wider if encoder_parameters(in_channels, w, kernels) <= MAX_ENCODER_PARAMETERS), widths)


def training_memory_gb(size: Size3, network: NetworkPlan, n_classes: int) -> float:
    """Rough GPU memory (10^9 bytes) that stage 2 needs for one pair of this size."""
    elements = CLASS_MAPS * n_classes * math.prod(size)
    voxels = float(math.prod(size))
    for width, stride in zip(network.widths, network.strides, strict=True):
        voxels /= math.prod(stride)
        elements += FEATURE_MAPS * width * voxels
    return BYTES * elements / 1e9


def registration_size(
    size: Size3, spacing_mm: Vector3, network: NetworkPlan, n_classes: int, budget_gb: float
) -> Size3:
    """The same field of view in coarser voxels, as many as fit.

    The search ends: it stops at bottlenecks of 4 voxels an axis, and a patch with these strides is no smaller.
    """
    divisor = total_stride(network.strides)
    spacing, coarse = spacing_mm, size
    while training_memory_gb(coarse, network, n_classes) > budget_gb:
        spacing = coarser_spacing(spacing)
        z, y, x = (
            max(min(n, MIN_BOTTLENECK_EDGE * d), int(n * fine / now) // d * d)
            for n, d, fine, now in zip(size, divisor, spacing_mm, spacing, strict=True)
        )
        coarse = (z, y, x)
    return coarse


def _with_margin(low: float, high: float, size: int, spacing_mm: float) -> tuple[int, int]:
    """First voxel and one past the last, on one axis of `size` voxels; the whole axis if little would be cut."""
    margin = max(MARGIN_VOX, MARGIN_SHARE * (high - low), min(MARGIN_MM / spacing_mm, MARGIN_MM_AT_MOST_VOX))
    start = max(0, math.floor(round(low - margin, 6)))
    stop = min(size, math.ceil(round(high + margin, 6)))
    return (start, stop) if size - (stop - start) >= WORTHWHILE_CUT * size else (0, size)


def _fine(spacing_mm: Vector3) -> list[bool]:
    """Which axes are less than twice as coarse as the finest."""
    return [s / min(spacing_mm) < 2 for s in spacing_mm]


def _grid_plan(box: Box, registration: Size3, patch: Size3) -> GridPlan:
    return GridPlan(start_vox=box.start, size_vox=box.size, registration_size_vox=registration, patch_vox=patch)
