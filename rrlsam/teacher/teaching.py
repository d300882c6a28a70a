"""SAM's features of the training scans: computed once on the atlas grid, kept on disk, read back for distillation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rrlsam.data.batches import Batches
from rrlsam.engine.device import Device
from rrlsam.errors import ResourceError
from rrlsam.geometry import Size3
from rrlsam.plan import Plan
from rrlsam.system.progress import Progress
from rrlsam.system.resources import free_disk
from rrlsam.system.storage import array_sha256
from rrlsam.teacher.feature_cache import FeatureKey, cached_features, disk_bytes, fill_cache, missing_features

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


def teacher_features(
    batches: Batches,
    plan: Plan,
    teacher_id: str,
    sam: Path | None,
    folder: Path,
    device: Device,
    progress: Progress,
    *,
    time_budget_s: float | None = None,
) -> Mapping[str, np.ndarray]:
    """Features (256, z, y, x), float16, of every training scan on the light encoder's deepest grid.

    `sam`: weights for what is not cached yet; None raises ResourceError if anything is missing. What they cost is said
    before they are computed, and that there is a way without them if that is more than the time budget.
    """
    grid = deepest_grid(plan)
    side = min(max(_SMALLEST_SIDE, max(grid[1:]) * _TOKEN), _LARGEST_SIDE)

    def volume(case: str) -> Tensor:
        return batches.plain(case).whole.image

    contents = {case: array_sha256(volume(case).numpy()) for case in batches.cases}
    keys = [
        FeatureKey(case=case, content=content, teacher_id=teacher_id, side_px=side, grid=grid)
        for case, content in contents.items()
    ]
    missing = missing_features(keys, folder)
    if missing and sam is not None:
        from rrlsam.nets.sam import build_teacher, read_encoder_weights

        teacher = build_teacher(read_encoder_weights(sam), side).to(device.place)
        first = volume(missing[0].case)
        announce(feature_cost(missing, teacher.seconds_per_slice(first), first.shape[2]), folder, time_budget_s)
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


def deepest_grid(plan: Plan) -> Size3:
    """Size of the light encoder's deepest features on the registration grid, axis order z, y, x."""
    z, y, x = plan.grid.registration_size_vox
    for stride in plan.network.strides:
        z, y, x = (-(-n // s) for n, s in zip((z, y, x), stride, strict=True))
    return (z, y, x)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
