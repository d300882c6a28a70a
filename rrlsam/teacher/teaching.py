"""SAM's features of the training scans: computed once on the atlas grid, kept on disk, read back for distillation."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rrlsam.data.batches import Batches
from rrlsam.engine.device import Device
from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Size3, Vector3
from rrlsam.plan import Plan
from rrlsam.settings import TrainingOptions
from rrlsam.system.lock import sole_writer
from rrlsam.system.progress import Progress
from rrlsam.system.resources import free_disk
from rrlsam.system.storage import array_sha256
from rrlsam.teacher.feature_cache import FeatureKey, cached_features, disk_bytes, fill_cache, missing_features
from rrlsam.teacher.sam_releases import TeacherFile, require_sam
from rrlsam.teacher.slices import AlongAxes, SliceTeacher

NO_TEACHER = "none"
_SMALLEST_SIDE, _LARGEST_SIDE, _TOKEN = 224, 1024, 16
"""Pixels. 224 gives 14 x 14 tokens, which fill SAM's attention windows exactly: 2.4 times cheaper than 256."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FeatureCost:
    """What computing features takes here."""

    cases: int
    seconds: float
    disk_mb: float
    """10^6 bytes, at most."""


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A teacher that is built only if features are missing. `train` takes any; `--sam` makes one of SAM's weights."""

    teacher_id: str
    """SHA-256 of what makes the teacher: it tells its features from all others'."""
    build: Callable[[int, Device], SliceTeacher] | None
    """Makes it for square images of so many pixels; None: it can't be made here, features must be there."""
    side_px: int | None = None
    """The images' side; None: by the deepest grid of the plan."""


def sam_source(sam: TeacherFile) -> TeacherSource:
    """SAM, by a file of its weights."""

    def build(side_px: int, device: Device) -> SliceTeacher:
        from rrlsam.nets.sam import build_teacher, read_encoder_weights

        return build_teacher(read_encoder_weights(sam.path), side_px).to(device.place)

    return TeacherSource(teacher_id=sam.sha256, build=build)


def teacher_of(
    options: TrainingOptions, given: TeacherSource | None, *, began_with: str | None, progress: Progress
) -> TeacherSource | None:
    """The teacher that is given, else SAM as the options name it; None to train without.

    `began_with`: the teacher of the training that goes on, which stays; SAM's weights are then needed only for features
    that are not cached yet.
    """
    if began_with is not None and given is None and options.sam is None:
        return None if began_with == NO_TEACHER else TeacherSource(teacher_id=began_with, build=None)
    source = None
    if "no_distillation" not in options.ablations:
        source = given or _named(options.sam, progress)
    if began_with not in (None, NO_TEACHER if source is None else source.teacher_id):
        name = f"--sam {options.sam}" if given is None else given.teacher_id
        raise BadInputError(f"{name}: training began with another teacher ({began_with})")
    return source


def _named(sam: str | None, progress: Progress) -> TeacherSource | None:
    weights = require_sam(sam, progress=progress)
    return None if weights is None else sam_source(weights)


def with_axes(plan: Plan, axes: tuple[int, ...] | None) -> Plan:
    """The plan, with a teacher that sees slices along other axes than planned; None: as planned."""
    return plan if axes is None else dataclasses.replace(plan, teacher_axes=axes)


def teacher_features(
    batches: Batches,
    plan: Plan,
    source: TeacherSource,
    folder: Path,
    device: Device,
    progress: Progress,
    *,
    time_budget_s: float | None = None,
) -> Mapping[str, np.ndarray]:
    """Features (256, z, y, x), float16, of every training scan on the light encoder's deepest grid.

    A source without a teacher raises ResourceError if anything is missing. What features cost is said before they are
    computed, and that there is a way without them if that is more than the time budget.
    """
    grid, spacing = deepest_grid(plan), registration_spacing(plan)
    side = source.side_px or teacher_side(grid, plan.teacher_axes)

    def volume(case: str) -> Tensor:
        return batches.plain(case).whole.image

    contents = {case: array_sha256(volume(case).numpy()) for case in batches.cases}
    keys = [
        FeatureKey(
            case=case,
            content=content,
            teacher_id=source.teacher_id,
            side_px=side,
            grid=grid,
            spacing_mm=spacing,
            axes=plan.teacher_axes,
        )
        for case, content in contents.items()
    ]
    with sole_writer(folder, wait=True):  # folds of one atlas share it
        missing = missing_features(keys, folder)
        if missing and source.build is not None:
            teacher = AlongAxes(source.build(side, device), plan.teacher_axes, spacing)
            first = volume(missing[0].case).to(device.place)
            cost = feature_cost(missing, teacher.seconds_per_slice(first), teacher.slices(first))
            announce(cost, folder, time_budget_s)
            fill_cache(missing, teacher, lambda case: volume(case).to(device.place), folder, progress)
    return {key.case: cached_features(key, None, volume, folder) for key in keys}


def feature_cost(missing: Sequence[FeatureKey], seconds_per_slice: float, slices: int) -> FeatureCost:
    """The cost of features of volumes of so many slices."""
    seconds = len(missing) * slices * seconds_per_slice
    return FeatureCost(cases=len(missing), seconds=seconds, disk_mb=disk_bytes(missing) / 1e6)


def announce(cost: FeatureCost, folder: Path, time_budget_s: float | None) -> None:
    """Say what features cost, and the way without them if it is too much; ResourceError if the disk is too small."""
    _log.info(
        "SAM's features of %d scan%s: about %s and at most %.1f MB in %s; computed once; an interruption loses one",
        cost.cases,
        "" if cost.cases == 1 else "s",
        _duration(cost.seconds),
        cost.disk_mb,
        folder,
    )
    if time_budget_s is not None and cost.seconds > time_budget_s:
        _log.warning(
            "that is more than the time budget of %s; to train without them, interrupt and give --sam none",
            _duration(time_budget_s),
        )
    free_mb = free_disk(folder) / 1e6
    if free_mb < cost.disk_mb:
        raise ResourceError(
            f"{folder}: SAM's features need {cost.disk_mb:.0f} MB, {free_mb:.0f} MB are free; "
            "make room or give --sam none"
        )


def teacher_side(grid: Size3, axes: Sequence[int]) -> int:
    """Pixels of the square that SAM sees: enough for a token a cell of the deepest grid, whatever the slices' axes."""
    seen = {other for axis in axes for other in range(3) if other != axis}
    return min(max(_SMALLEST_SIDE, max(grid[axis] for axis in seen) * _TOKEN), _LARGEST_SIDE)


def registration_spacing(plan: Plan) -> Vector3:
    """Spacing of the grid that the registration sees."""
    z, y, x = (
        mm * fine / coarse
        for mm, fine, coarse in zip(
            plan.data.spacing_mm, plan.grid.size_vox, plan.grid.registration_size_vox, strict=True
        )
    )
    return (z, y, x)


def deepest_grid(plan: Plan) -> Size3:
    """Size of the light encoder's deepest features on the registration grid, axis order z, y, x."""
    z, y, x = plan.grid.registration_size_vox
    for stride in plan.network.strides:
        z, y, x = (-(-n // s) for n, s in zip((z, y, x), stride, strict=True))
    return (z, y, x)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
