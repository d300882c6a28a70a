"""Models from files of strangers: looked at from all sides, then installed whole or not at all."""

import contextlib
import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rrlsam.data.atlas import Atlas
from rrlsam.errors import BadInputError, ResourceError, UnsafeError, UsageError, listed
from rrlsam.geometry import Geometry, Size3
from rrlsam.models.atlas_files import AtlasRecord, join_atlas
from rrlsam.models.checkpoint import Checkpoint, Progress, Provenance, save_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.models.model_file import (
    ARCHITECTURE,
    ATLAS_ARRAYS,
    ATLASES,
    DATASET,
    FORMAT,
    MANIFEST,
    MEMBERS,
    NETWORK_ARRAYS,
    PLAN,
    PROVENANCE,
    SUMMARY,
    AtlasRecords,
    Manifest,
    dataset_description,
)
from rrlsam.models.safe_zip import SafeZip, check_zip
from rrlsam.nets.build import build_networks
from rrlsam.plan import Plan, check_plan
from rrlsam.registry import TRAINERS, list_plugins
from rrlsam.settings import ABLATIONS, FINAL, LATEST
from rrlsam.system.jsonio import from_json, save_json
from rrlsam.system.lock import sole_writer
from rrlsam.system.resources import existing_folder, free_disk, require_memory
from rrlsam.system.staging import staged_folder
from rrlsam.workspace import Workspace

MAX_SIZES = {".json": 16 << 20, ".safetensors": 8 << 30}
MAX_LEVELS = 16
_FOLD_FILES = (PLAN, PROVENANCE, ATLASES, NETWORK_ARRAYS, ATLAS_ARRAYS)
_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+|.*:.*", re.DOTALL)
"""A dotted path, or module:Class."""
_UNKNOWN_ENTRY = ("unexpected_keyword_argument", "extra_forbidden")
_PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f. ][^/\\:\x00-\x1f\x7f]{0,199}")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model that was installed."""

    folder: Path
    manifest: Manifest


def import_model(path: Path, workspace: Workspace, *, overwrite: bool = False) -> Imported:
    """Check a model file and install it among the results; `overwrite`: in the place of one that is there.

    UnsafeError for what could harm, BadInputError for what is wrong, UsageError where a model would be replaced
    unasked, ResourceError where it is being trained. Nothing of a refused file is left.
    """
    archive = check_zip(path, MEMBERS, MAX_SIZES)
    manifest = _read_manifest(archive)
    folder = model_folder(workspace.results(manifest.dataset), manifest.trainer, manifest.plans)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: there is a model already; give --overwrite to replace it")
    _require_space(folder, 2 * sum(archive.sizes.values()))
    largest = max((_bytes_of_fold(archive, fold) for fold in manifest.training), default=0)
    require_memory(2 * largest, str(path), "close other programs; a file from a stranger may be made to fill it")
    with contextlib.ExitStack() as locks, staged_folder(folder) as staging:
        for fold in folder.glob("fold_*"):  # a model that is being trained is not taken away from under its training
            locks.enter_context(sole_writer(fold))
        for fold, summary in manifest.training.items():
            checkpoint = _read_fold(archive, manifest, fold)
            save_checkpoint(checkpoint, fold_folder(staging, fold) / FINAL)
            _also_as_latest(fold_folder(staging, fold))
            save_json(checkpoint.plan, fold_folder(staging, fold) / PLAN)
            save_json(summary, fold_folder(staging, fold) / SUMMARY)
            (staging / DATASET).write_text(dataset_description(checkpoint.plan), encoding="utf-8")
        save_json(manifest, staging / MANIFEST)
    return Imported(folder=folder, manifest=manifest)


def _bytes_of_fold(archive: SafeZip, fold: str) -> int:
    """What a fold's members take, which are unpacked into memory together."""
    return sum(size for name, size in archive.sizes.items() if name.startswith(f"fold_{fold}/"))


def _also_as_latest(fold: Path) -> None:
    """The finished checkpoint under its second name, by which --c sees that nothing is left to be trained."""
    try:
        os.link(fold / FINAL, fold / LATEST)
    except OSError:  # a file system without links
        shutil.copyfile(fold / FINAL, fold / LATEST)


def _read_manifest(archive: SafeZip) -> Manifest:
    """The manifest, which agrees with the archive and names nothing that is not allowed."""
    if MANIFEST not in archive.sizes:
        raise UnsafeError(f"{archive.path}: has no {MANIFEST}; it is no model file of rrlsam_export")
    text = archive.read(MANIFEST)
    _require_format(text, archive.path)
    manifest = _strict(Manifest, text, f"{archive.path}: {MANIFEST}")
    members = {name: member.size for name, member in manifest.members.items()}
    there = {name: size for name, size in archive.sizes.items() if name != MANIFEST}
    wanted = {DATASET, *(f"fold_{fold}/{name}" for fold in manifest.training for name in _FOLD_FILES)}
    if members != there or set(there) != wanted or len(wanted) == 1:
        odd = sorted(set(members.items()) ^ set(there.items())) or sorted((name, 0) for name in set(there) ^ wanted)
        names = ", ".join(dict.fromkeys(name for name, _ in odd[:5])) or "no fold"
        raise UnsafeError(f"{archive.path}: members are missing, superfluous or of another size ({names})")
    if manifest.architecture != ARCHITECTURE:
        raise UnsafeError(
            f"{archive.path}: architecture {manifest.architecture[:60]!r} is not allowed; known: {ARCHITECTURE}"
        )
    _require_trainer(manifest.trainer, archive.path)
    for what, name in (("data set", manifest.dataset), ("plans", manifest.plans)):
        if not _PLAIN_NAME.fullmatch(name) or len(name.encode()) > 200 or ".." in name:
            raise UnsafeError(f"{archive.path}: {MANIFEST}: {what} {name[:100]!r} would leave its folder")
    return manifest


def _require_format(text: bytes, path: Path) -> None:
    """Tell a newer format apart from a damaged or a malicious one."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: {MANIFEST}: not valid JSON; get the file again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BadInputError(
            f"{path}: format {found!r:.40} is not {FORMAT}, the one this version reads; train and export an older "
            "model anew, for a newer one update rrlsam"
        )


def _require_trainer(name: str, path: Path) -> None:
    """A file may name a trainer that is installed; it may never name code."""
    if _CODE.fullmatch(name):
        raise UnsafeError(f"{path}: trainer {name[:100]!r} names code; a model file may only name an installed trainer")
    if name not in list_plugins(TRAINERS):
        raise UnsafeError(
            f"{path}: trainer {name[:100]!r} is not installed; install the package that brings it (an entry point of "
            f"{TRAINERS}) and import again"
        )


def _read_fold(archive: SafeZip, manifest: Manifest, fold: str) -> Checkpoint:
    """One fold, every entry and every array of which fits the others."""

    def content(name: str) -> bytes:
        return archive.read(name, digest=manifest.members[name].sha256)

    def source(name: str) -> str:
        return f"{archive.path}: fold_{fold}/{name}"

    inside = {name: content(f"fold_{fold}/{name}") for name in _FOLD_FILES}
    plan = _checked_plan(_strict(Plan, inside[PLAN], source(PLAN)), source(PLAN))
    provenance = _strict(Provenance, inside[PROVENANCE], source(PROVENANCE))
    records = _strict(AtlasRecords, inside[ATLASES], source(ATLASES)).atlases
    _require_trainer(provenance.trainer, archive.path)
    if (plan.dataset, provenance.trainer, provenance.fold) != (manifest.dataset, manifest.trainer, fold):
        raise BadInputError(f"{source(PROVENANCE)}: data set, trainer or fold are not those of {MANIFEST}")
    if not set(provenance.ablations) <= set(ABLATIONS):
        raise BadInputError(f"{source(PROVENANCE)}: unknown ablations {provenance.ablations}; update rrlsam")
    if content(DATASET) != dataset_description(plan).encode():
        raise BadInputError(f"{archive.path}: {DATASET}: does not describe the channels and labels of fold_{fold}")
    networks = _load_tensors(inside[NETWORK_ARRAYS], source(NETWORK_ARRAYS))
    _require_shapes(networks, expected_networks(plan, source(PLAN)), source(NETWORK_ARRAYS))
    arrays = _load_tensors(inside[ATLAS_ARRAYS], source(ATLAS_ARRAYS))
    return Checkpoint(
        plan=plan,
        provenance=provenance,
        atlases=_make_atlases(records, arrays, plan, source(ATLAS_ARRAYS)),
        networks=networks,
        progress=Progress(
            finished=manifest.training[fold].stages, stage="", iteration=0, optimizer=None, journal_size=0
        ),
    )


def _checked_plan(plan: Plan, source: str) -> Plan:
    if _CODE.fullmatch(plan.planner):
        raise UnsafeError(f"{source}: planner {plan.planner[:100]!r} names code; a model file must not")
    if len(plan.network.widths) > MAX_LEVELS:
        raise BadInputError(f"{source}: network: {len(plan.network.widths)} levels, at most {MAX_LEVELS} are allowed")
    return check_plan(plan, source=source)


def expected_networks(plan: Plan, source: str) -> dict[str, Tensor]:
    """Names and shapes of the plan's networks, without memory for them, whatever sizes a plan claims."""
    try:
        with torch.device("meta"):
            return build_networks(plan, seed=0).state_dict()
    except (ValueError, RuntimeError, TypeError, OverflowError, ZeroDivisionError, IndexError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise BadInputError(f"{source}: network: no networks can be built of it ({reason})") from error


def _load_tensors(content: bytes, source: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise BadInputError(f"{source}: not readable safetensors ({error}); get the file again") from error


def _require_shapes(found: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    for name in sorted(found.keys() ^ expected.keys()):
        what = "lacks the array" if name in expected else "holds the unknown array"
        raise BadInputError(f"{source}: {what} {name[:100]!r}")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            shapes = f"{tuple(tensor.shape)} {tensor.dtype}, expected {tuple(wanted.shape)} {wanted.dtype}"
            raise BadInputError(f"{source}: the array {name} is {shapes}")
        if not bool(tensor.isfinite().all()):
            raise BadInputError(f"{source}: the array {name} holds NaN or infinite values")


def _make_atlases(
    records: tuple[AtlasRecord, ...], arrays: dict[str, Tensor], plan: Plan, source: str
) -> tuple[Atlas, ...]:
    if tuple(atlas.case for atlas in records) != plan.atlases or not records:
        raise BadInputError(f"{source}: its atlases are not those of the plan")
    expected: dict[str, Tensor] = {}
    for number, atlas in enumerate(records):
        if atlas.grid.shape != plan.grid.size_vox or len(atlas.foreground) != len(plan.channel_names):
            raise BadInputError(f"{source}: grid or channels of atlas {atlas.case!r} are not the plan's")
        for geometry in (atlas.grid, atlas.alignment_geometry):
            _require_grid(geometry, source)
        found = arrays.get(f"{number}.label", torch.zeros(0, dtype=torch.int16))
        if found.dtype not in (torch.uint8, torch.int16):
            raise BadInputError(f"{source}: labels are {found.dtype}, expected uint8 or int16")
        expected |= {
            f"{number}.image": _empty((1, len(plan.channel_names), *atlas.grid.shape), torch.float32),
            f"{number}.label": _empty((1, *atlas.grid.shape), found.dtype),
            f"{number}.alignment_image": _empty(atlas.alignment_geometry.shape, torch.float32),
        }
    _require_shapes(arrays, expected, source)
    for number, atlas in enumerate(records):
        values = arrays[f"{number}.label"].unique().tolist()
        strange = [str(value) for value in values if value not in plan.labels.declared]
        if strange:
            raise BadInputError(
                f"{source}: atlas {atlas.case!r} holds label values {listed(strange)} that are not declared"
            )
    return tuple(join_atlas(atlas, arrays, f"{number}.") for number, atlas in enumerate(records))


def _require_grid(geometry: Geometry, source: str) -> None:
    volume = abs(float(np.linalg.det(geometry.matrix[:3, :3])))
    affine = np.array_equal(geometry.matrix[3], [0, 0, 0, 1])
    if min(geometry.shape) < 1 or not affine or not 1e-9 < volume < 1e9:
        raise BadInputError(f"{source}: a grid of shape {geometry.shape} with voxels of {volume:g} mm3 is impossible")


def _empty(shape: tuple[int, ...] | Size3, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _strict(cls: type[T], text: bytes, source: str) -> T:
    """A record; an entry that the format does not know could be meant for code that resolves it, and is refused."""
    try:
        return from_json(cls, text, source=source)
    except BadInputError as error:
        cause = error.__cause__
        found = cause.errors() if isinstance(cause, pydantic.ValidationError) else []
        unknown = next((item for item in found if item["type"] in _UNKNOWN_ENTRY), None)
        if unknown is None:
            raise
        name = ".".join(str(part) for part in unknown["loc"])
        raise UnsafeError(f"{source}: the entry {name[:100]!r} is none of this format; refused") from error


def _require_space(folder: Path, needed: int) -> None:
    there, free = existing_folder(folder.parent), free_disk(folder.parent)
    if free < needed:
        megabytes = math.ceil(needed / 1e6), free // 1_000_000
        raise ResourceError(f"{there}: the model needs {megabytes[0]} MB, {megabytes[1]} MB are free; free some")
