"""A trained model as one file: a zip of JSON and safetensors, every member with its SHA-256; no pickle, no class path.

manifest.json                                        what there is, with sums; how the model came to be
dataset.json                                         channels and labels, in nnU-Net's form
fold_F/plan.json, provenance.json, atlases.json      the records of a checkpoint
fold_F/networks.safetensors, atlases.safetensors     its arrays
"""

import hashlib
import json
import platform
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rrlsam import __version__
from rrlsam.errors import BadInputError, UsageError
from rrlsam.models.atlas_files import AtlasRecord, atlas_arrays, atlas_record
from rrlsam.models.checkpoint import Checkpoint, load_checkpoint, require_same_kind
from rrlsam.models.choose import TrainedModel
from rrlsam.models.safe_zip import FIXED_DATE
from rrlsam.plan import Plan
from rrlsam.registry import TRAINERS, list_plugins
from rrlsam.scans.dataset import describe_dataset
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import load_or_none, record, to_json

FORMAT = 3
"""Raised together with that of checkpoints."""
ARCHITECTURE = "rrl_medsam"
"""The networks of rrlsam.nets.build; a model file can name an architecture, but not bring one."""
ENDING = ".nii.gz"
"""The file ending that dataset.json names; masks get that of their scans."""
MANIFEST, DATASET = "manifest.json", "dataset.json"
PLAN, PROVENANCE, ATLASES = "plan.json", "provenance.json", "atlases.json"
NETWORK_ARRAYS, ATLAS_ARRAYS = "networks.safetensors", "atlases.safetensors"
SUMMARY = "training_summary.json"
"""In an imported fold: what its model file told of the training."""
MEMBERS = re.compile(
    r"manifest\.json|dataset\.json|fold_(all|\d{1,3})/((plan|provenance|atlases)\.json|(networks|atlases)\.safetensors)"
)
"""Every name that a member may have."""


@record
class Member:
    """One file in the archive."""

    sha256: str
    size: int


@record
class Versions:
    """What wrote the file."""

    python: str
    torch: str
    numpy: str
    safetensors: str
    rrlsam: str


@record
class TrainingSummary:
    """How the training of one fold went."""

    stages: tuple[str, ...]
    """Finished ones, in order."""
    rounds: int
    training_cases: int
    validation_cases: int
    validation_dice: float | None
    """Mean over structures of the held-out cases; None if none were held out."""


@record
class Manifest:
    """The table of contents."""

    format: int
    architecture: str
    dataset: str
    trainer: str
    plans: str
    licence: str
    """What the exporting person said about it."""
    versions: Versions
    training: dict[str, TrainingSummary]
    """By fold."""
    members: dict[str, Member]
    """All files but the manifest."""


@record
class AtlasRecords:
    """The atlases of a fold."""

    atlases: tuple[AtlasRecord, ...]


def export_model(model: TrainedModel, folds: tuple[str, ...] | None, path: Path, *, licence: str) -> Manifest:
    """Write the finished folds of a model (None: all) into one file, whole or not at all.

    The same model gives the same bytes.
    """
    chosen = model.folds if folds is None else tuple(sorted(set(folds)))
    checkpoints = dict(zip(chosen, model.checkpoints(chosen), strict=True))
    members: dict[str, Member] = {}
    training: dict[str, TrainingSummary] = {}
    first: Checkpoint | None = None
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            members[name] = Member(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            _write(archive, name, content)

        for fold, file in checkpoints.items():
            checkpoint = load_checkpoint(file)
            first = first or checkpoint
            _require_exportable(first, checkpoint, file)
            training[fold] = _summary(checkpoint, file.parent)
            for name, content in _fold_members(checkpoint):
                add(f"fold_{fold}/{name}", content)
        if first is None:
            raise UsageError(f"{model.folder}: no fold was chosen; name one with -f")
        add(DATASET, dataset_description(first.plan).encode())
        manifest = Manifest(
            format=FORMAT,
            architecture=ARCHITECTURE,
            dataset=first.plan.dataset,
            trainer=first.provenance.trainer,
            plans=model.plans,
            licence=licence,
            versions=_versions(),
            training=training,
            members=members,
        )
        _write(archive, MANIFEST, to_json(manifest).encode())
    return manifest


def dataset_description(plan: Plan) -> str:
    """dataset.json of a plan's channels and labels; told by the plan alone, so that it can be checked against it."""
    return describe_dataset(plan.channel_names, plan.labels, ENDING, 0)


def _fold_members(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    atlases = AtlasRecords(atlases=tuple(atlas_record(atlas) for atlas in checkpoint.atlases))
    arrays: dict[str, Tensor] = {}
    for number, atlas in enumerate(checkpoint.atlases):
        arrays |= atlas_arrays(atlas, f"{number}.")
    yield PLAN, to_json(checkpoint.plan).encode()
    yield PROVENANCE, to_json(checkpoint.provenance).encode()
    yield ATLASES, to_json(atlases).encode()
    yield NETWORK_ARRAYS, _packed(checkpoint.networks)
    yield ATLAS_ARRAYS, _packed(arrays)


def _packed(tensors: dict[str, Tensor]) -> bytes:
    """Safetensors of copies, since tensors that share memory are not accepted."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Uncompressed (weights hardly shrink), and without the date, the user or the system's compressor in the bytes."""
    member = zipfile.ZipInfo(name, date_time=FIXED_DATE)
    member.create_system = 3
    member.external_attr = 0o100644 << 16
    archive.writestr(member, content)


def _require_exportable(first: Checkpoint, other: Checkpoint, path: Path) -> None:
    """Folds of one file share data set, channels, labels and trainer; the trainer is one that others can have."""
    require_same_kind(first, other, path, "export them apart with -f")
    if first.provenance.trainer != other.provenance.trainer:
        raise BadInputError(f"{path}: has another trainer than the first fold; export them apart with -f")
    if first.provenance.trainer not in list_plugins(TRAINERS):
        raise UsageError(
            f"{path}: trainer {first.provenance.trainer!r} is no installed entry point of {TRAINERS}, so nobody could "
            "import the model; register it in a package (docs/extending.md)"
        )


def _summary(checkpoint: Checkpoint, folder: Path) -> TrainingSummary:
    told = load_or_none(TrainingSummary, folder / SUMMARY)
    if told is not None:
        return told
    cases, dice = _validation(folder / "validation" / "summary.json")
    return TrainingSummary(
        stages=checkpoint.progress.finished,
        rounds=checkpoint.plan.rounds,
        training_cases=len(checkpoint.provenance.training_cases),
        validation_cases=cases,
        validation_dice=dice,
    )


def _validation(path: Path) -> tuple[int, float | None]:
    """Number of held-out cases and their mean Dice; nothing is known where there was no validation."""
    if not path.is_file():
        return 0, None
    try:
        content = json.loads(path.read_bytes())
        dice = float(content["foreground_mean"]["Dice"])
        return len(content["metric_per_case"]), dice if np.isfinite(dice) else None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path}: not a summary.json of a validation; delete it or train again") from error


def _versions() -> Versions:
    return Versions(
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=np.__version__,
        safetensors=version("safetensors"),
        rrlsam=__version__,
    )
