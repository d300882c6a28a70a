"""The refined fields of all training scans: made before a stage, kept on disk as long as a checkpoint needs them."""

from __future__ import annotations

import io
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.errors import BadInputError
from rrlsam.nets.displacement import warp
from rrlsam.scans.likeness import is_unlike, likeness
from rrlsam.stages.refinement import refined_flow
from rrlsam.system.files import atomic_write, checksum_fits, with_checksum

if TYPE_CHECKING:
    from rrlsam.engine.fit import Run
    from rrlsam.stages.state import Stage

FOLDER = "fields"
_log = logging.getLogger(__name__)


class StoredFields(Mapping[str, Float[Tensor, "1 3 z y x"]]):
    """Fields on disk, each opened when it is looked at: thousands need neither memory nor open files."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def __getitem__(self, case: str) -> Float[Tensor, "1 3 z y x"]:
        return torch.from_numpy(np.load(self._paths[case], mmap_mode="c"))

    def __contains__(self, case: object) -> bool:
        return case in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def resting_fields(run: Run) -> Mapping[str, Float[Tensor, "1 3 z y x"]]:
    """A field of every training scan that moves nothing: costs a step what a refined one does."""
    rest = torch.zeros((1, 3, *run.atlas.compared.shape[2:]), dtype=torch.float16)
    return dict.fromkeys(run.batches.registered, rest)


def refined_fields(stage: Stage, run: Run) -> StoredFields | None:
    """Displacement of all scans that a stage draws, on the grid of comparison, refined from the network as it is.

    Half precision (a hundredth of a voxel). What a killed run left is taken over; a stage that is under way does not
    make fields anew, its network has moved on.
    """
    if stage.refinement_iterations == 0:
        return None
    under_way = run.progress.stage == stage.name and run.progress.iteration > 0
    paths = {case: _folder(stage, run) / f"{case}.npy" for case in refined_cases(stage, run)}
    for case, path in paths.items():
        if not is_whole(path):
            if under_way:
                raise BadInputError(
                    f"{path}: is gone or damaged, so this training cannot go on as it began; use --overwrite"
                )
            field = refined_field(case, run, stage.refinement_iterations)
            _warn_if_unlike(case, run, field)
            write_field(field, path)
        run.advance()
    return StoredFields(paths)


def refined_cases(stage: Stage, run: Run) -> tuple[str, ...]:
    """Whose fields are refined before a stage: all that it draws."""
    return run.batches.registered_by(stage.name, draws_of(stage)) if stage.refinement_iterations else ()


def draws_of(stage: Stage) -> int:
    """Scans that a stage draws, one after another."""
    return stage.settings.iterations * stage.settings.batch_size


def write_field(field: Float[Tensor, "1 3 z y x"], path: Path) -> None:
    """Write a field in half precision as numpy does, and behind it the SHA-256 of all that."""
    buffer = io.BytesIO()
    np.save(buffer, field.half().numpy())
    with atomic_write(path) as temporary:
        temporary.write_bytes(with_checksum(buffer.getvalue()))


def is_whole(path: Path) -> bool:
    """Whether a field is there and as it was written."""
    try:
        return checksum_fits(path.read_bytes())
    except FileNotFoundError:
        return False


def forget_fields(folder: Path, *, except_for: Collection[str] = ()) -> None:
    """Remove the fields that a fold's stages made, except for those of some stages."""
    for path in (folder / FOLDER).glob("*"):
        if path.name not in except_for:
            shutil.rmtree(path, ignore_errors=True)


def refined_field(case: str, run: Run, iterations: int) -> Float[Tensor, "1 3 z y x"]:
    """One scan's displacement, from the network's velocity and `iterations` steps at each resolution."""
    batch = run.batches.plain(case).to(run.device.place)
    flow = refined_flow(run.nets, run.atlas, batch, iterations, autocast=run.device.autocast())
    return flow.displacement(run.atlas.compared.shape[2:]).cpu()


def _warn_if_unlike(case: str, run: Run, displacement: Float[Tensor, "1 3 z y x"]) -> None:
    """Say so where a scan, registered, does not look like the atlas; not again, where the stage before looked at it."""
    if case in (run.batches.fields or ()) or (scan := run.batches.plain(case).compared) is None:
        return
    warped = warp(run.atlas.compared[:, :1].cpu().float(), displacement)
    first, second, inside = (volume[0, 0].numpy() for volume in (scan.clean, warped, scan.inside))
    alike = likeness(first, second, inside > 0)
    if is_unlike(alike):
        _log.warning(
            "%s: its intensities hardly follow the atlas's (correlation %.2f); is it of another modality?",
            case,
            alike,
        )


def field_seconds(run: Run, iterations: int) -> tuple[float, float]:
    """What one scan's field costs here when all is warm, without its steps, and what a step does."""

    def seconds(case: str, iterations: int) -> float:
        began = time.perf_counter()
        refined_field(case, run, iterations)
        return time.perf_counter() - began

    seconds(run.batches.cases[0], 1)
    with_loading, one = (seconds(run.batches.cases[-1], 1) for _ in range(2))
    step = max(0.0, seconds(run.batches.cases[-1], 1 + iterations) - one) / iterations
    return max(0.0, with_loading - step), step


def _folder(stage: Stage, run: Run) -> Path:
    return run.folder / FOLDER / stage.name
