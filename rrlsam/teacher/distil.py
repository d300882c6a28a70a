"""Any folders of scans to a general encoder: stage 1a alone, without labels, atlas or data set."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batches
from rrlsam.data.sampling import ScanCache, TrainingScan
from rrlsam.engine.device import Device, choose_device
from rrlsam.engine.fit import Run, fit
from rrlsam.engine.journal import Journal
from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.geometry import Geometry, Size3, Vector3, make_geometry
from rrlsam.labels import LabelScheme, Structure
from rrlsam.models.checkpoint import Progress as State
from rrlsam.models.checkpoint import Provenance
from rrlsam.nets.build import build_networks
from rrlsam.plan import DistillationKind, Plan, check_plan
from rrlsam.planning.extract import scan_fingerprint
from rrlsam.planning.fingerprint import SCHEMA, AtlasFingerprint, Fingerprint, ScanFingerprint, StructureStats
from rrlsam.preprocessing.preprocess import load_case, preprocess_case, window_ct
from rrlsam.registry import get_planner
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.dataset import Scan
from rrlsam.scans.inputs import count_channels, find_inputs
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.settings import DEFAULT_MEMORY_GB
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.system.jsonio import load_json
from rrlsam.system.parallel import attempt_each
from rrlsam.system.progress import Progress
from rrlsam.teacher.general_encoder import EncoderProvenance, GeneralEncoder, taken_from
from rrlsam.teacher.sam_releases import require_sam
from rrlsam.teacher.teaching import NO_TEACHER, TeacherSource, sam_source, teacher_features, with_axes

NAME = "rrlsam_distill"
CASES = "cases"
STEPS_PER_SCAN, FEWEST_STEPS = 10, 500
_EVERYTHING = LabelScheme(
    n_classes=2, structures=(Structure(name="scan", values=(1,)),), regions_class_order=None, ignore=None
)
"""What plans are made for where nothing is labelled: one structure that fills the scan."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """How to distil."""

    plan: Path | None = None
    """A plan.json for whose network the encoder is made; None: planned by the scans."""
    planner: str = "default"
    channel_name: str = "MRI"
    """Of every channel, where there is no plan: it chooses the normalisation."""
    sam: str | None = None
    """As for rrlsam_train."""
    loss: DistillationKind | None = None
    """None: the plan's."""
    sam_axes: tuple[int, ...] | None = None
    """Axes (0 = z, 1 = y, 2 = x) along which SAM sees slices; None: the plan's."""
    iterations: int | None = None
    """None: ten a scan, but at least 500."""
    seed: int = 0
    device: str = "auto"
    repairs: Repairs = NO_REPAIRS


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What came out."""

    encoder: GeneralEncoder
    loss_before: float
    """Mean over the first tenth of the steps."""
    loss_after: float
    """Mean over the last tenth."""
    failures: dict[str, str]
    """Case to reason, for scans that were left out."""


def distil(folders: Sequence[Path], work: Path, options: DistilOptions, progress: Progress) -> Distilled:
    """Distil SAM into an encoder on all scans of some folders.

    `work` keeps prepared scans and SAM's features, so that another call need not make them again. A scan that cannot
    be used is left out; BadInputError if that leaves none.
    """
    sam = require_sam(options.sam, progress=progress)
    if sam is None:
        raise UsageError("--sam none: without a teacher there is nothing to distil")
    given = None if options.plan is None else check_plan(load_json(Plan, options.plan), source=str(options.plan))
    scans = find_pool(folders, None if given is None else len(given.channel_names), options.repairs)
    looks, failures = _each(scans, lambda scan: scan_fingerprint(scan, tell=True), "Reading", progress)
    plan = given or plan_for(tuple(looks.values()), options.channel_name, options.planner)
    plan = with_axes(_with_steps(plan, options, len(looks)), options.sam_axes)
    readable = [scan for scan in scans if scan.case in looks]
    stored, unfit = _each(
        readable, lambda scan: preprocess_case(scan, plan.data, work / CASES), "Preprocessing", progress
    )
    failures |= unfit
    if not stored:
        raise BadInputError(f"none of {len(scans)} scans can be used; the first: {next(iter(failures.values()))}")
    foreground = looks[next(iter(stored))].intensity
    run = _make_run(plan, tuple(stored), foreground, sam.sha256, options, choose_device(options.device), work)
    with contextlib.closing(run.journal):
        losses = _fit(run, sam_source(sam), options.loss or plan.distillation_loss, progress)
    tenth = max(1, len(losses) // 10)
    return Distilled(
        encoder=taken_from(run.nets, plan, _provenance(run, options)),
        loss_before=float(np.mean(losses[:tenth])),
        loss_after=float(np.mean(losses[-tenth:])),
        failures=failures,
    )


def find_pool(folders: Sequence[Path], n_channels: int | None, repairs: Repairs = NO_REPAIRS) -> tuple[Scan, ...]:
    """The scans of all folders, named by folder and case; `n_channels` None: as many as the first scan has."""
    scans = []
    for number, folder in enumerate(folders):
        found = find_inputs(folder, n_channels or 1)
        n_channels = n_channels or max(len(found[0].images), count_channels(found[0].images[0]))
        scans += [Scan(case=f"{number}_{scan.case}", images=scan.images, repairs=repairs) for scan in found]
    wrong = [scan.case for scan in scans if len(scan.images) != n_channels]
    if wrong:
        raise BadInputError(f"scans of another number of channels than {n_channels}: {listed(wrong)}; part them")
    return tuple(scans)


def plan_for(looks: Sequence[ScanFingerprint], channel_name: str, planner: str) -> Plan:
    """A planner's plan for scans of which all is to be seen; BadInputError for no scan."""
    if not looks:
        raise BadInputError("no scan can be read; give folders with scans CASE_0000.ENDING")
    size, spacing = _median_size(looks), _median_spacing(looks)
    volume = float(np.prod(size))
    everything = StructureStats(
        label=1, voxels=int(volume), volume_mm3=volume * float(np.prod(spacing)), box_start=(0, 0, 0), box_stop=size
    )
    atlas = AtlasFingerprint(
        schema=SCHEMA,
        case=looks[0].case,
        content="",
        size_vox=size,
        spacing_mm=spacing,
        foreground_intensity=looks[0].intensity,
        structures=(everything,),
        left_right_pairs=(),
    )
    names = (channel_name,) * len(looks[0].intensity)
    pool = Fingerprint(schema=SCHEMA, dataset=NAME, channel_names=names, scans=tuple(looks), mean_distance={})
    memory = {"gpu_memory_target_gb": DEFAULT_MEMORY_GB, "time_budget_s": None}
    return check_plan(get_planner(planner).plan(pool, atlas, _EVERYTHING, **memory), source=f"planner {planner}")


def _make_run(
    plan: Plan,
    cases: tuple[str, ...],
    foreground: tuple[ChannelStats, ...],
    teacher: str,
    options: DistilOptions,
    device: Device,
    work: Path,
) -> Run:
    """A run at its beginning, in which every scan lies with its centre on the grid's."""
    _log.info("%s", device.reason)
    grid = make_geometry(plan.grid.size_vox, np.diag([*plan.data.spacing_mm[::-1], 1.0]))

    def load(case: str) -> TrainingScan:
        found = load_case(work / CASES, case)
        image = torch.from_numpy(window_ct(found.array, plan.data, foreground))
        return TrainingScan(image=image, geometry=found.geometry, atlas_to_case=_centred(grid, found.geometry))

    provenance = Provenance(
        trainer=NAME,
        fold="all",
        seed=options.seed,
        teacher=teacher,
        ablations=(),
        training_cases=cases,
        labelled_cases=(),
        general_encoder=NO_TEACHER,
        files="",
    )
    journal = Journal(work / "metrics.jsonl")
    journal.cut(0)
    return Run(
        plan=plan,
        provenance=provenance,
        atlases=(),
        atlas=_no_atlas(plan).to(device.place),
        nets=build_networks(plan, seed=options.seed).to(device.place),
        batches=Batches(cases, ScanCache(load), grid, plan.grid, plan.augmentation, seed=options.seed),
        device=device,
        folder=work,
        journal=journal,
        progress=State(finished=(), stage="", iteration=0, optimizer=None, journal_size=0),
    )


def _fit(run: Run, source: TeacherSource, kind: DistillationKind, progress: Progress) -> list[float]:
    """Compute SAM's features and train; returns the loss of every step that was taken."""
    run.batches.features = teacher_features(
        run.batches, run.plan, source, run.folder / "sam_features", run.device, progress
    )
    with progress("Distilling", run.plan.distillation.iterations) as advance:
        run.advance = advance
        fit(DistilSam(run.plan.distillation, kind=kind), run)
    losses = [record["terms"]["distillation"] for record in run.journal.records()]
    return [loss for loss in losses if loss is not None]


def _provenance(run: Run, options: DistilOptions) -> EncoderProvenance:
    return EncoderProvenance(
        teacher=run.provenance.teacher,
        loss=options.loss or run.plan.distillation_loss,
        iterations=run.plan.distillation.iterations,
        seed=options.seed,
        scans=len(run.batches.cases),
        spacing_mm=run.plan.data.spacing_mm,
    )


def _each(
    scans: Sequence[Scan], work: Callable[[Scan], T], description: str, progress: Progress
) -> tuple[dict[str, T], dict[str, str]]:
    """Results and reasons by case; one bad scan does not stop the others."""
    items = {scan.case: scan for scan in scans}
    results, problems = attempt_each(work, items, description, workers=None, progress=progress)
    for case, error in problems.items():
        _log.warning("%s: left out: %s", case, error)
    return results, {case: str(error) for case, error in problems.items()}


def _with_steps(plan: Plan, options: DistilOptions, n_scans: int) -> Plan:
    steps = options.iterations or max(FEWEST_STEPS, STEPS_PER_SCAN * n_scans)
    return dataclasses.replace(plan, distillation=dataclasses.replace(plan.distillation, iterations=steps))


def _centred(grid: Geometry, scan: Geometry) -> np.ndarray:
    """World map that brings the grid's centre to the scan's."""
    shift = np.eye(4)
    shift[:3, 3] = scan.centre_mm - grid.centre_mm
    return shift


def _no_atlas(plan: Plan) -> AtlasView:
    """Nothing to be seen: this stage looks at scans alone."""
    image = torch.zeros(1, len(plan.channel_names), 1, 1, 1)
    label = torch.zeros(1, plan.labels.n_classes, 1, 1, 1)
    return AtlasView(image=image, compared=image, fine_label=label, prior=label, has_ignore=False)


def _median_size(looks: Sequence[ScanFingerprint]) -> Size3:
    z, y, x = (max(1, round(float(n))) for n in np.median([look.cropped_size_vox for look in looks], axis=0))
    return (z, y, x)


def _median_spacing(looks: Sequence[ScanFingerprint]) -> Vector3:
    z, y, x = (float(s) for s in np.median([look.spacing_mm for look in looks], axis=0))
    return (z, y, x)
