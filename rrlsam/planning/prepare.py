"""From raw data to everything that training needs: fingerprints, plan, prepared scans, affine starts.

preprocessed/DATASET/rrlsam/report.json                                  what is wrong or odd with the raw data
preprocessed/DATASET/rrlsam/sound.json                                   which scans were read through and found sound
preprocessed/DATASET/rrlsam/fingerprint.json
preprocessed/DATASET/rrlsam/services_HASH.json                           which of some labelled scans serves best
preprocessed/DATASET/rrlsam/PLANS/planning.json                          with what options was planned
preprocessed/DATASET/rrlsam/PLANS/cases/HASH/CASE.b2nd, CASE.json        HASH: of the plan's data part
preprocessed/DATASET/rrlsam/PLANS/atlas_CASE/atlas.json, plan.json, plan_inputs.json, affines.json
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rrlsam.data.atlas import image_on_grid
from rrlsam.interfaces import Planner
from rrlsam.labels import LabelScheme
from rrlsam.plan import DataPlan, Plan, grid_geometry
from rrlsam.planning.best_atlas import best_atlas
from rrlsam.planning.extract import extract_atlas_fingerprint, extract_fingerprint, extract_label_offset
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint, StoredAtlas
from rrlsam.planning.folds import Fold, make_fold
from rrlsam.planning.label_offset import LabelOffset
from rrlsam.planning.replan import make_plan
from rrlsam.preprocessing.affine import Alignment, alignment_image
from rrlsam.preprocessing.affine_store import prepare_affines
from rrlsam.preprocessing.nearer_looks import Target, make_target
from rrlsam.preprocessing.preprocess import Case, StoredCase, load_case, preprocess_case, window_ct
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.dataset import Dataset
from rrlsam.scans.integrity import REPORT, check_dataset, require_sound
from rrlsam.scans.scan_checks import Finding
from rrlsam.scans.sound import SoundScans
from rrlsam.scans.volume import BYTES_A_VOXEL, claimed_voxels
from rrlsam.settings import DEFAULT_MEMORY_GB, DEFAULT_PLANS
from rrlsam.system.jsonio import load_or_none, load_sealed, save_sealed, to_json
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress, silent
from rrlsam.system.resources import usable_cores, workers_within_memory
from rrlsam.workspace import Workspace

FEW_VOXELS = 8
"""A structure of fewer voxels in the atlas is warned of."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How to prepare. A new plan is shaped by the memory target and the time budget."""

    plans_name: str = DEFAULT_PLANS
    """Folder of the plans: another name keeps several plans side by side."""
    gpu_memory_target_gb: float = DEFAULT_MEMORY_GB
    time_budget_s: float | None = None
    overwrite_plan: bool = False
    """Plan anew even where a plan fits, edited or not."""
    workers: int | None = None
    """Threads; None: one a usable core."""
    fingerprint_workers: int | None = None
    """Threads of check and fingerprint; None: `workers`."""
    clean: bool = False
    """Take the fingerprints of every scan and of the atlas anew."""
    plan_only: bool = False
    """Prepare and align no scans."""
    progress: Progress = silent


@dataclass(frozen=True, kw_only=True)
class PreparedAtlas:
    """All that training with one atlas needs."""

    plan: Plan
    fingerprint: AtlasFingerprint
    affines: Mapping[str, Alignment]
    """For every scan: atlas world to scan world; empty if only a plan was asked for."""
    folder: Path
    """Holds plan.json and the other files of this atlas."""
    cases: Path
    """Folder of prepared scans, for preprocess.load_case."""


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """All that training of some folds needs."""

    dataset: Dataset
    """With what of its files is mended as they are read."""
    fingerprint: Fingerprint
    folds: Mapping[str, Fold]
    atlases: Mapping[str, PreparedAtlas]
    """By the case that the scans are registered to: the first of a fold."""
    further_label_offsets: Mapping[str, LabelOffset]
    """Of the folds' other labelled cases."""


def plan_and_preprocess(
    dataset: Dataset,
    folds: Sequence[str],
    workspace: Workspace,
    planner: Planner,
    options: PrepareOptions,
    *,
    atlases: tuple[str, ...] = (),
    shots: int | None = None,
) -> PreparedDataset:
    """Check the data set and prepare it for some folds; `atlases` and `shots`: see make_fold."""
    options = _within_memory(dataset, options)
    folder = workspace.preprocessed(dataset.name)
    require_sound(_findings(dataset, folder, options), folder / REPORT)
    fingerprint = prepare_fingerprint(dataset, workspace, options)
    splits = find_splits(dataset, workspace)
    best = partial(best_atlas, dataset, fingerprint, folder=folder, progress=options.progress)
    made = {
        name: make_fold(dataset, fingerprint, name, atlases=atlases, shots=shots, splits=splits, best=best)
        for name in folds
    }
    wanted = dict.fromkeys(fold.atlases[0] for fold in made.values())
    further = sorted({case for fold in made.values() for case in fold.atlases[1:]})
    offsets = for_each(
        lambda case: extract_label_offset(dataset.scan(case), dataset.labels),
        {case: case for case in further},
        "Labels",
        workers=options.workers,
        progress=options.progress,
    )
    prepared = {case: prepare_atlas(dataset, case, fingerprint, workspace, planner, options) for case in wanted}
    return PreparedDataset(
        dataset=dataset, fingerprint=fingerprint, folds=made, atlases=prepared, further_label_offsets=offsets
    )


def _within_memory(dataset: Dataset, options: PrepareOptions) -> PrepareOptions:
    """The options with as many workers as there is memory for, each with the largest scan."""
    largest = max(
        (claimed_voxels(scan.images[0]) * len(scan.images) for scan in dataset.scans if scan.images), default=0
    )
    wanted = (options.workers, options.fingerprint_workers or options.workers)
    workers, fingerprint_workers = (workers_within_memory(n, BYTES_A_VOXEL * largest) for n in wanted)
    if workers < (options.workers or usable_cores()):
        _log.warning("there is memory for %d worker(s) only, with scans of %d voxels", workers, largest)
    return replace(options, workers=workers, fingerprint_workers=fingerprint_workers)


def _findings(dataset: Dataset, folder: Path, options: PrepareOptions) -> list[Finding]:
    """All that is wrong or odd; scans that were found sound and have not changed are not read through again."""
    sound = SoundScans(folder / "sound.json", forget=options.clean)
    try:
        return check_dataset(
            dataset, look=sound.check_images, workers=options.fingerprint_workers, progress=options.progress
        )
    finally:
        sound.save()


def prepare_fingerprint(dataset: Dataset, workspace: Workspace, options: PrepareOptions) -> Fingerprint:
    """The label-free fingerprint; only new or changed scans are read."""
    path = workspace.preprocessed(dataset.name) / "fingerprint.json"
    previous = None if options.clean else load_or_none(Fingerprint, path, load_sealed)
    found = extract_fingerprint(
        dataset, previous, workers=options.fingerprint_workers or options.workers, progress=options.progress
    )
    if found != previous:
        save_sealed(found, path)
    return found


def prepare_atlas_fingerprint(dataset: Dataset, case: str, path: Path, options: PrepareOptions) -> AtlasFingerprint:
    """The fingerprint of one atlas with its label, made anew where its files or the labels have changed."""
    previous = None if options.clean else load_or_none(StoredAtlas, path, load_sealed)
    found = StoredAtlas(
        labels=dataset.labels,
        fingerprint=extract_atlas_fingerprint(dataset.scan(case), dataset.labels, previous),
    )
    if found != previous:
        save_sealed(found, path)
    return found.fingerprint


def prepare_atlas(
    dataset: Dataset,
    case: str,
    fingerprint: Fingerprint,
    workspace: Workspace,
    planner: Planner,
    options: PrepareOptions,
) -> PreparedAtlas:
    """Plan, prepared scans and affines for one atlas; whatever is there and still fits is kept."""
    plans = workspace.preprocessed(dataset.name) / options.plans_name
    folder = plans / f"atlas_{case}"
    atlas = prepare_atlas_fingerprint(dataset, case, folder / "atlas.json", options)
    plan = make_plan(
        planner,
        fingerprint,
        atlas,
        dataset.labels,
        folder,
        gpu_memory_target_gb=options.gpu_memory_target_gb,
        time_budget_s=options.time_budget_s,
        overwrite=options.overwrite_plan,
    )
    _warn_of_rare_structures(atlas, dataset.labels)
    if plan.atlas_label_shift_vox != (0, 0, 0):
        _warn_of_shift(plan, atlas, folder / "plan.json")
    cases = cases_folder(plans, plan.data)
    if options.plan_only:
        return PreparedAtlas(plan=plan, fingerprint=atlas, affines={}, folder=folder, cases=cases)
    stored = prepare_cases(dataset, plan.data, cases, options)
    foreground, grid = atlas.foreground_intensity, plan.grid
    affines = prepare_affines(
        case,
        lambda: _alignment_target(load_case(cases, case), plan, foreground),
        (grid.start_vox, grid.size_vox, foreground),
        stored,
        cases,
        folder / "affines.json",
        workers=options.workers,
        progress=options.progress,
    )
    return PreparedAtlas(plan=plan, fingerprint=atlas, affines=affines, folder=folder, cases=cases)


def _alignment_target(atlas: Case, plan: Plan, foreground: tuple[ChannelStats, ...]) -> Target:
    """What scans are aligned to; prediction makes the same of the trained model."""
    grid = grid_geometry(plan, atlas.info.canonical)
    box, whole = image_on_grid(atlas, grid, plan, foreground), alignment_image(atlas.array, atlas.geometry)
    return make_target(whole, box.numpy(), grid, partial(window_ct, data=plan.data, foreground=foreground))


def _warn_of_rare_structures(atlas: AtlasFingerprint, labels: LabelScheme) -> None:
    """Say which structures the atlas hardly shows: they cannot be learnt from it."""
    voxels = {found.label: found.voxels for found in atlas.structures}
    for structure in labels.structures:
        count = sum(voxels.get(value, 0) for value in structure.values)
        if count < FEW_VOXELS:
            what = "%s: has %d voxel(s) of %s and can hardly teach it; choose a case that shows it with --atlas"
            _log.warning(what, atlas.case, count, structure.name)


def _warn_of_shift(plan: Plan, atlas: AtlasFingerprint, path: Path) -> None:
    _log.warning(
        "%s: the label is moved by %s voxels (z, y, x), where it tells %.0f %% more about the image than where it "
        "lies; if it is right as it is, set atlas_label_shift_vox in %s to [0, 0, 0]",
        atlas.case,
        plan.atlas_label_shift_vox,
        100 * (atlas.label_offset.gain - 1),
        path,
    )


def prepare_cases(dataset: Dataset, data: DataPlan, folder: Path, options: PrepareOptions) -> dict[str, StoredCase]:
    """Prepare every scan, labelled or not, by its images alone."""
    scans = {scan.case: scan for scan in dataset.scans}
    return for_each(
        lambda scan: preprocess_case(scan, data, folder),
        scans,
        "Preprocessing",
        workers=options.workers,
        progress=options.progress,
    )


def find_splits(dataset: Dataset, workspace: Workspace) -> Path | None:
    """A splits_final.json of the user's, in the raw or in nnU-Net's preprocessed folder."""
    for folder in (dataset.folder, workspace.root("preprocessed") / dataset.name):
        if (folder / "splits_final.json").is_file():
            return folder / "splits_final.json"
    return None


def cases_folder(plans: Path, data: DataPlan) -> Path:
    """Where scans prepared by a DataPlan lie; plans that prepare alike share it."""
    return plans / "cases" / hashlib.sha256(to_json(data).encode()).hexdigest()[:8]
