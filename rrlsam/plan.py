"""The plan: everything that a training run is told, short enough to be read and edited. Axis order z, y, x."""

import math
from typing import Literal

import numpy as np

from rrlsam.errors import BadInputError
from rrlsam.geometry import Geometry, Reflection, Size3, Vector3
from rrlsam.labels import LARGEST_VALUE, LabelScheme
from rrlsam.system.jsonio import record

SCHEMA = 1
"""Version of the file format; a file with another number is refused."""

SMALLEST_SPACING_MM = 1e-4
LARGEST_GRID_VOX = 2**33

SAM_BASE_ENCODER_PARAMETERS = 89_670_912
MAX_ENCODER_PARAMETERS = SAM_BASE_ENCODER_PARAMETERS * 3 // 100
"""2,690,127: the light encoder has at most 3 % of SAM-Base's parameters."""

MAX_COMPARED_VOXELS = 1 << 21
_COMPARED_STEP = 1 / 64

DistillationKind = Literal["mse", "cosine", "l1"]
"""How the distance to SAM's features is measured."""
Normalization = Literal["zscore", "ct", "nonorm", "rescale_to_0_1", "rgb_to_0_1"]
"""How a channel's intensities are prepared; `ct` is clipped to a window of the atlas's later on."""


@record
class DataPlan:
    """How scans are prepared; cases prepared under another DataPlan are prepared again."""

    spacing_mm: Vector3
    """Target spacing."""
    normalization: tuple[Normalization, ...]
    """One a channel."""
    normalize_inside_nonzero: tuple[bool, ...]
    """One a channel: mean and standard deviation of non-zero voxels only (z-score)."""


@record
class GridPlan:
    """The atlas grid: a box of the canonical atlas at target spacing, in which everything is learnt."""

    start_vox: Size3
    """First voxel in the atlas resampled to the target spacing; may be negative (padding)."""
    size_vox: Size3
    """Size of the whole grid at target spacing; divisible by the network's strides."""
    registration_size_vox: Size3
    """The same field of view as the registration sees it; equal to size_vox if that fits in memory."""
    patch_vox: Size3
    """What the segmentation sees at once; equal to size_vox if that fits in memory."""

    @property
    def whole(self) -> bool:
        """Whether one grid serves registration and segmentation."""
        return self.size_vox == self.registration_size_vox == self.patch_vox

    @property
    def comparison_size_vox(self) -> Size3:
        """The grid on which registered images are compared: fine, whatever the networks see, if that is affordable."""
        size, share = self.size_vox, 1.0
        while math.prod(size) > MAX_COMPARED_VOXELS and size != self.registration_size_vox:
            share -= _COMPARED_STEP
            z, y, x = (max(c, round(share * n)) for n, c in zip(self.size_vox, self.registration_size_vox, strict=True))
            size = (z, y, x)
        return size


@record
class NetworkPlan:
    """Sizes of the networks. One entry a level, finest first."""

    widths: tuple[int, ...]
    """Channels of the light encoder's levels."""
    strides: tuple[Size3, ...]
    """Stride with which a level begins; the first is (1, 1, 1)."""
    kernels: tuple[Size3, ...]
    """Convolution kernels."""


@record
class StagePlan:
    """Length and step size of one stage."""

    iterations: int
    learning_rate: float
    batch_size: int


@record
class AugmentationPlan:
    """Random changes of training scans."""

    rotation_degrees: float
    """Largest rotation about each axis."""
    scale: float
    """Largest relative change of size."""
    mirror_axes: tuple[int, ...]
    """Axes (0 = z, 1 = y, 2 = x) along which scans may be mirrored, the atlas with them; predictions are then averaged
    over mirrored views too. Labels keep their sides: not x where they come in left/right pairs (not checked)."""


@record
class Plan:
    """Everything that training and prediction need to know besides the images."""

    schema: int
    planner: str
    dataset: str
    channel_names: tuple[str, ...]
    labels: LabelScheme
    atlases: tuple[str, ...]
    atlas_label_shift_vox: Size3 = (0, 0, 0)
    """By how much the atlas's label is moved to fit its image, voxels of the canonical atlas; (0, 0, 0): as drawn."""
    reflection: Reflection | None = None
    """Every scan is looked at a second time, in the mirror, with left and right labels swapped; null: it is not."""
    data: DataPlan
    grid: GridPlan
    network: NetworkPlan
    distillation: StagePlan
    """Stage 1a: SAM into the general encoder."""
    distillation_loss: DistillationKind = "mse"
    teacher_axes: tuple[int, ...] = (0,)
    """Axes (0 = z, 1 = y, 2 = x) along which the teacher sees slices; of several, features are averaged."""
    joint: StagePlan
    """Stage 1b: joint registration and segmentation of the medical encoder."""
    mutual: StagePlan
    """Stage 2, one round of the pseudo-label loop."""
    rounds: int
    """Rounds of stage 2."""
    refinement_iterations: int = 20
    """Steps by which the field of each training scan is refined before a stage; a short time budget lowers them."""
    scans_a_stage: int | None = None
    """Of many scans, how many a stage registers; null: all. A short time budget sets it."""
    prediction_refinement_iterations: int = 40
    """Steps by which the field of a scan is refined in prediction."""
    augmentation: AugmentationPlan
    time_budget_s: float | None
    """Seconds of training to which the iteration counts are scaled, or None: as written here."""


def grid_geometry(plan: Plan, atlas: Geometry) -> Geometry:
    """The atlas grid in the world, given the canonical atlas's own grid."""
    resampled = atlas.with_spacing(plan.data.spacing_mm)
    start, size = plan.grid.start_vox, plan.grid.size_vox
    return resampled.box(start, [a + n for a, n in zip(start, size, strict=True)])


def check_plan(plan: Plan, *, source: str) -> Plan:
    """Return the plan if its numbers fit together; BadInputError otherwise, naming entry and remedy."""
    problem = (
        _schema_problem(plan)
        or _label_problem(plan)
        or _network_problem(plan)
        or _grid_problem(plan)
        or _stage_problem(plan)
        or _teacher_problem(plan)
        or _reflection_problem(plan)
        or _augmentation_problem(plan)
    )
    if problem:
        raise BadInputError(f"{source}: {problem}")
    return plan


def _schema_problem(plan: Plan) -> str | None:
    if plan.schema != SCHEMA:
        return f"schema {plan.schema} is not {SCHEMA}, the one this version reads; plan again or update rrlsam"
    if len(plan.atlases) != 1:
        return f"atlases must name the one case that scans are registered to, not {len(plan.atlases)}"
    return None


def _label_problem(plan: Plan) -> str | None:
    labels = plan.labels
    values = [value for structure in labels.structures for value in structure.values]
    if not values or any(not structure.values for structure in labels.structures):
        return "labels.structures: at least one structure with at least one value is needed"
    if not 1 <= min(values) <= max(values) < labels.n_classes:
        return f"labels.structures: values must be from 1 to n_classes - 1, found {min(values)} to {max(values)}"
    order = labels.regions_class_order
    if order is not None and (
        len(order) != len(labels.structures) or not 0 <= min(order) <= max(order) <= LARGEST_VALUE
    ):
        return f"labels.regions_class_order needs one value up to {LARGEST_VALUE} for each structure"
    if labels.ignore is not None and labels.ignore != labels.n_classes:
        return f"labels.ignore must be {labels.n_classes}, the largest value plus one"
    return None


def _network_problem(plan: Plan) -> str | None:
    levels = len(plan.network.widths)
    sizes = [n for entry in (*plan.network.strides, *plan.network.kernels) for n in entry]
    if min([*plan.network.widths, *sizes, 1]) < 1 or not all(0 < s < 1e6 for s in plan.data.spacing_mm):
        return "widths, strides, kernels and spacing_mm must be above 0"
    if min(plan.data.spacing_mm) < SMALLEST_SPACING_MM:
        return f"data.spacing_mm must be at least {SMALLEST_SPACING_MM}"
    if not levels == len(plan.network.strides) == len(plan.network.kernels) >= 2:
        return "network: widths, strides and kernels must have one entry a level, at least two levels"
    if plan.network.strides[0] != (1, 1, 1) or any(k % 2 == 0 for kernel in plan.network.kernels for k in kernel):
        return "network: the first stride must be (1, 1, 1), and every kernel odd"
    channels = len(plan.channel_names)
    if not channels == len(plan.data.normalization) == len(plan.data.normalize_inside_nonzero):
        return f"data: normalization needs one entry for each of the {channels} channels"
    return None


def _grid_problem(plan: Plan) -> str | None:
    grid = plan.grid
    if math.prod(grid.size_vox) > LARGEST_GRID_VOX:
        return f"grid.size_vox {grid.size_vox} has more than {LARGEST_GRID_VOX:,} voxels"
    divisor = [1, 1, 1]
    for stride in plan.network.strides:
        divisor = [d * s for d, s in zip(divisor, stride, strict=True)]
    for name in ("size_vox", "registration_size_vox", "patch_vox"):
        size: Size3 = getattr(grid, name)
        if min(size) < 3:
            return f"grid.{name} {size} must be at least 3 on every axis"
        for axis, n, d in zip("zyx", size, divisor, strict=True):
            if n < d or n % d:
                nearest = max(d, round(n / d) * d)
                return f"grid.{name} {size} is not divisible by {d} on axis {axis}; nearest: {nearest}"
    if grid.registration_size_vox != grid.size_vox and grid.patch_vox == grid.size_vox:
        return "grid: a coarser registration needs a segmentation patch smaller than the grid"
    if any(p > n for p, n in zip(grid.patch_vox, grid.size_vox, strict=True)):
        return f"grid.patch_vox {grid.patch_vox} is larger than the grid {grid.size_vox}"
    return None


def _stage_problem(plan: Plan) -> str | None:
    stages = (plan.distillation, plan.joint, plan.mutual)
    steps = (plan.refinement_iterations, plan.prediction_refinement_iterations)
    if min(plan.rounds, *steps) < 0 or any(stage.iterations < 0 or stage.batch_size < 1 for stage in stages):
        return "iterations, refinement_iterations and rounds must not be negative, batch_size not below 1"
    if plan.scans_a_stage is not None and plan.scans_a_stage < 1:
        return "scans_a_stage must be at least 1, or null for all scans"
    if any(not stage.learning_rate > 0 for stage in stages):
        return "learning_rate must be above 0"
    if plan.time_budget_s is not None and not plan.time_budget_s > 0:
        return "time_budget_s must be above 0, or null for the iterations as they are"
    return None


def _teacher_problem(plan: Plan) -> str | None:
    axes = plan.teacher_axes
    if not axes or len(set(axes)) < len(axes) or not {0, 1, 2}.issuperset(axes):
        return f"teacher_axes {list(axes)}: one to three different axes are needed, of 0 (z), 1 (y) and 2 (x)"
    return None


def _augmentation_problem(plan: Plan) -> str | None:
    augmentation = plan.augmentation
    if not 0 <= augmentation.rotation_degrees <= 180 or not 0 <= augmentation.scale < 1:
        return "augmentation: rotation_degrees must be from 0 to 180, scale at least 0 and below 1"
    axes = augmentation.mirror_axes
    if len(set(axes)) < len(axes) or not {0, 1, 2}.issuperset(axes):
        return f"augmentation.mirror_axes {list(axes)}: different axes are needed, of 0 (z), 1 (y) and 2 (x), or none"
    return None


def _reflection_problem(plan: Plan) -> str | None:
    if plan.reflection is None:
        return None
    swapped, values = plan.reflection.swapped, range(len(plan.labels.declared))
    if len(swapped) != len(values) or not all(s in values and swapped[s] == v for v, s in enumerate(swapped)):
        return (
            f"reflection.swapped must be one of {list(values)} for each of these, and the counterpart of each its own"
        )
    world = plan.reflection.world
    mirrors = np.linalg.det(world[:3, :3]) < 0 and (world[3] == (0, 0, 0, 1)).all()
    if not mirrors or not np.allclose(world @ world, np.eye(4), atol=1e-3):
        return "reflection.matrix must mirror, its last row be 0, 0, 0, 1, and it its own inverse; or reflection null"
    return None
