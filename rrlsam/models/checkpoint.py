"""Checkpoints: tensors and plain types only, so that they load with weights_only=True; each carries its plan.

torch.load does not notice a flipped bit, so a checkpoint ends in the SHA-256 of all before it, as the comment of the
zip file that torch writes. A training keeps its two newest checkpoints.
"""

import io
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrlsam import __version__
from rrlsam.data.atlas import Atlas
from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Geometry
from rrlsam.models.atlas_files import AtlasRecord, atlas_arrays, atlas_record, join_atlas
from rrlsam.plan import Plan, check_plan
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.settings import LATEST
from rrlsam.system.files import CHECKSUM_SIZE, atomic_write, checksum_fits, with_checksum
from rrlsam.system.jsonio import from_json, record, to_json
from rrlsam.system.tensor_files import load_plain

FORMAT = 5
"""Raised whenever older networks would no longer mean the same, as with another prior of the segmentation."""
PREVIOUS = "checkpoint_previous.pt"
DAMAGED = "checkpoint_damaged.pt"
_END_OF_ZIP = b"PK\5\6"
_SIZE_OF_END = 22
_log = logging.getLogger(__name__)


@record
class Provenance:
    """How a model came to be."""

    trainer: str
    fold: str
    seed: int
    teacher: str
    """SHA-256 of the teacher's weights, or "none"."""
    ablations: tuple[str, ...]
    training_cases: tuple[str, ...]
    labelled_cases: tuple[str, ...]
    """Those whose label was learnt from, the atlas first."""
    general_encoder: str
    """SHA-256 of the file with the general encoder that training started from, or "none"."""
    files: str
    """SHA-256 of the files that were learnt from: images of all training cases, labels of the labelled ones."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come."""

    finished: tuple[str, ...]
    """Names of finished stages."""
    stage: str
    """Name of the stage that is under way, or ""."""
    iteration: int
    """Its finished iterations."""
    optimizer: dict[str, Any] | None
    """Its optimizer's state."""
    journal_size: int
    """Bytes of the journal that belong to this state."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model, finished or not."""

    plan: Plan
    provenance: Provenance
    atlases: tuple[Atlas, ...]
    networks: dict[str, Tensor]
    progress: Progress


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    with atomic_write(path) as temporary:
        _write(checkpoint, temporary)


def save_latest(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a fold's newest checkpoint; the one that was the newest is kept as the previous one.

    Once there is a newest one there always is, wherever the process is killed.
    """
    with atomic_write(folder / LATEST) as temporary:
        _write(checkpoint, temporary)
        if (folder / LATEST).exists():
            _keep_as_previous(folder)


def _keep_as_previous(folder: Path) -> None:
    """Give the newest checkpoint its second name; under the first it stays until the next one takes its place."""
    with atomic_write(folder / PREVIOUS) as temporary:
        try:
            os.link(folder / LATEST, temporary)
        except OSError:  # a file system without links
            shutil.copy2(folder / LATEST, temporary)


def load_latest(folder: Path) -> Checkpoint | None:
    """A fold's newest good checkpoint, or None if it has none at all; BadInputError if all that it has are bad.

    A damaged newest one is put aside, so that it never takes the place of the good one before it.
    """
    newest, previous = folder / LATEST, folder / PREVIOUS
    if not newest.exists() and not previous.exists():
        return None
    try:
        return load_checkpoint(newest)
    except BadInputError as error:
        if not previous.exists():
            raise
        reason = error
    try:
        kept = load_checkpoint(previous)
    except BadInputError as error:
        raise BadInputError(f"{reason}; so is the one before it, {previous}: train anew with --overwrite") from error
    _log.warning("%s; going on from the one before it, %s", reason, PREVIOUS)
    if newest.exists():
        os.replace(newest, folder / DAMAGED)
    return kept


def _write(checkpoint: Checkpoint, path: Path) -> None:
    progress = checkpoint.progress
    content = {
        "format": FORMAT,
        "rrlsam_version": __version__,
        "plan": to_json(checkpoint.plan),
        "provenance": to_json(checkpoint.provenance),
        "atlases": [_pack_atlas(atlas) for atlas in checkpoint.atlases],
        "networks": checkpoint.networks,
        "finished": list(progress.finished),
        "stage": progress.stage,
        "iteration": progress.iteration,
        "optimizer": progress.optimizer,
        "journal_size": progress.journal_size,
    }
    whole = _with_sum(content)
    path.write_bytes(whole)
    if path.read_bytes() != whole:
        raise ResourceError(f"{path.parent}: a checkpoint read back is not what was written; check the disk")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; BadInputError if it is damaged or of another format. No code in it can run."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such checkpoint")
    unreadable = BadInputError(f"{path}: not a readable checkpoint; train again or use another one")
    try:
        whole = path.read_bytes()
        content = load_plain(io.BytesIO(whole), unreadable)
    except OSError as error:
        raise unreadable from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BadInputError(
            f"{path}: not a checkpoint of format {FORMAT}; it was written by another program or version, train again"
        )
    if not checksum_fits(whole):
        raise BadInputError(f"{path}: damaged, its checksum does not fit; train again or use another one")
    plan = from_json(Plan, content["plan"], source=f"{path}: plan")
    return Checkpoint(
        plan=check_plan(plan, source=f"{path}: plan"),
        provenance=from_json(Provenance, content["provenance"], source=f"{path}: provenance"),
        atlases=tuple(_unpack_atlas(packed, str(path)) for packed in content["atlases"]),
        networks=content["networks"],
        progress=Progress(
            finished=tuple(content["finished"]),
            stage=content["stage"],
            iteration=content["iteration"],
            optimizer=content["optimizer"],
            journal_size=content["journal_size"],
        ),
    )


def require_same_kind(first: Checkpoint, other: Checkpoint, path: Path, remedy: str) -> None:
    """BadInputError unless channels and classes mean the same to two folds; `path`: the other one's checkpoint."""
    for what in ("dataset", "channel_names", "labels"):
        if getattr(first.plan, what) != getattr(other.plan, what):
            folds = f"fold {other.provenance.fold} differs from fold {first.provenance.fold}"
            raise BadInputError(f"{path}: {folds} in its plan's {what}; {remedy}")


def _with_sum(content: dict[str, Any]) -> bytes:
    """What torch.save writes, with its SHA-256 as the zip file's comment."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = bytearray(buffer.getvalue())
    if whole[-_SIZE_OF_END:][:4] != _END_OF_ZIP:
        raise ValueError("torch.save did not write a zip file without a comment")
    whole[-2:] = CHECKSUM_SIZE.to_bytes(2, "little")
    return with_checksum(bytes(whole))


def _pack_atlas(atlas: Atlas) -> dict[str, Any]:
    told = atlas_record(atlas)
    return {
        "case": told.case,
        "grid": to_json(told.grid),
        "foreground": [to_json(stats) for stats in told.foreground],
        "alignment_geometry": to_json(told.alignment_geometry),
    } | atlas_arrays(atlas)


def _unpack_atlas(packed: dict[str, Any], source: str) -> Atlas:
    told = AtlasRecord(
        case=packed["case"],
        grid=from_json(Geometry, packed["grid"], source=source),
        foreground=tuple(from_json(ChannelStats, text, source=source) for text in packed["foreground"]),
        alignment_geometry=from_json(Geometry, packed["alignment_geometry"], source=source),
    )
    return join_atlas(told, {name: entry for name, entry in packed.items() if isinstance(entry, Tensor)})
