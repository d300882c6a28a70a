"""Checkpoints: tensors and plain types only, so that they load with weights_only=True; each carries its plan."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrlsam import __version__
from rrlsam.data.atlas import Atlas
from rrlsam.errors import BadInputError
from rrlsam.files import atomic_write
from rrlsam.fingerprint import ChannelStats
from rrlsam.geometry import Geometry
from rrlsam.jsonio import from_json, record, to_json
from rrlsam.plan import Plan, check_plan

FORMAT = 2
LATEST = "checkpoint_latest.pt"
FINAL = "checkpoint_final.pt"


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
    labelled_cases: tuple[str, ...] = ()
    """Those whose label was learnt from, the atlas first."""


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
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; BadInputError if it is damaged or of another format. No code in it can run."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        raise BadInputError(f"{path}: not a readable checkpoint; train again or use another one") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInputError(
            f"{path}: not a checkpoint of format {FORMAT}; it was written by another program or version"
        )
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


def _pack_atlas(atlas: Atlas) -> dict[str, Any]:
    return {
        "case": atlas.case,
        "grid": to_json(atlas.grid),
        "image": atlas.image,
        "label": atlas.label,
        "foreground": [to_json(stats) for stats in atlas.foreground],
        "alignment_image": atlas.alignment_image,
        "alignment_geometry": to_json(atlas.alignment_geometry),
    }


def _unpack_atlas(packed: dict[str, Any], source: str) -> Atlas:
    return Atlas(
        case=packed["case"],
        grid=from_json(Geometry, packed["grid"], source=source),
        image=packed["image"],
        label=packed["label"],
        foreground=tuple(from_json(ChannelStats, text, source=source) for text in packed["foreground"]),
        alignment_image=packed["alignment_image"],
        alignment_geometry=from_json(Geometry, packed["alignment_geometry"], source=source),
    )
