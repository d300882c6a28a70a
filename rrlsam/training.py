"""A training run from start to end: prepare, distil, fit, keep, validate."""

import contextlib
import dataclasses
import hashlib
import logging
import shutil
from pathlib import Path

from rrlsam.data.atlas import has_prior, view_atlas
from rrlsam.data.batches import Batches
from rrlsam.data.training_scans import load_atlas, own_labels, training_scans
from rrlsam.engine.budget import fit_to_budget
from rrlsam.engine.device import Device, choose_device
from rrlsam.engine.fields import FOLDER as FIELDS
from rrlsam.engine.fields import refined_cases
from rrlsam.engine.fit import Run
from rrlsam.engine.journal import Journal
from rrlsam.engine.schedule import fix_iterations
from rrlsam.errors import BadInputError, UsageError
from rrlsam.interfaces import Trainer
from rrlsam.models.checkpoint import Checkpoint, Progress, Provenance, load_latest, save_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.models.model_size import prediction_bytes, training_bytes
from rrlsam.nets.build import build_networks
from rrlsam.plan import Plan
from rrlsam.planning.folds import Fold
from rrlsam.planning.prepare import PreparedAtlas, PreparedDataset
from rrlsam.planning.request import prepare_folds
from rrlsam.prediction.validation import validate
from rrlsam.registry import get_trainer
from rrlsam.scans.dataset import Dataset
from rrlsam.scans.volume import content_of
from rrlsam.settings import FINAL, LATEST, TrainingOptions
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.state import Stage
from rrlsam.system.aside import earlier_aside, settle_earlier
from rrlsam.system.files import remove_left_overs, sha256
from rrlsam.system.jsonio import save_json
from rrlsam.system.lock import LOCK, sole_writer
from rrlsam.system.progress import Progress as ProgressBar
from rrlsam.system.resources import require_memory
from rrlsam.teacher.general_encoder import GeneralEncoder, load_general_encoder, start_from_
from rrlsam.teacher.teaching import NO_TEACHER, TeacherSource, teacher_features, teacher_of, with_axes
from rrlsam.training_log import training_log
from rrlsam.workspace import Workspace

LOG = "training_log.txt"
METRICS = "metrics.jsonl"
_log = logging.getLogger(__name__)


def train(
    dataset: Dataset,
    workspace: Workspace,
    options: TrainingOptions,
    progress: ProgressBar,
    teacher: TeacherSource | None = None,
) -> str:
    """Train one fold; returns what to tell the user at the end. `teacher`: another one than `options.sam` names."""
    trainer = get_trainer(options.trainer)
    model = model_folder(workspace.results(dataset.name), options.trainer, options.plans_name)
    folder = fold_folder(model, options.fold)
    device = choose_device(options.device)
    with sole_writer(folder):
        remove_left_overs(folder)
        settle_earlier(folder, until=LATEST, stays=LOCK)
        kept = _kept_checkpoint(folder, options)
        began_with = None if kept is None else kept.provenance.teacher
        source = teacher_of(options, teacher, began_with=began_with, progress=progress)
        general = None if options.general_encoder is None else load_general_encoder(options.general_encoder)
        made = prepare_folds(
            dataset,
            workspace,
            (options.fold,),
            plans_name=options.plans_name,
            atlases=options.atlases,
            shots=options.shots,
            progress=progress,
        )
        fold = made.folds[options.fold]
        prepared = made.atlases[fold.atlases[0]]
        _require_memory(kept.plan if kept else prepared.plan, device, prepared.folder / "plan.json")
        with _earlier_kept(folder, options), training_log(folder / LOG):
            _tell(device, fold, source)
            beginning = Beginning(kept=kept, teacher=_id_of(source), general=general)
            run = make_run(made, options, device, folder, beginning)
            with contextlib.closing(run.journal):
                if source is not None:
                    run.batches.features = teacher_features(
                        run.batches,
                        run.plan,
                        source,
                        prepared.folder / "sam_features",
                        device,
                        progress,
                        time_budget_s=options.time_budget_s or run.plan.time_budget_s,
                    )
                _fit(trainer, run, options, progress, fresh=kept is None)
            del run, beginning, kept, general  # their memory is free for what validates
            keep = options.validation_probabilities
            return validate(made.dataset, fold, folder, device, progress, save_probabilities=keep)


def _tell(device: Device, fold: Fold, source: TeacherSource | None) -> None:
    """Log what is about to be trained, on what."""
    _log.info("%s", device.reason)
    further, unlabelled = len(fold.atlases) - 1, len(fold.unlabelled)
    _log.info("atlas %s, %d further labels, %d unlabelled scans", fold.atlases[0], further, unlabelled)
    _log.info("teacher: %s", "none, trained without SAM's distillation" if source is None else source.teacher_id)


def _id_of(source: TeacherSource | None) -> str:
    return NO_TEACHER if source is None else source.teacher_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run starts from."""

    kept: Checkpoint | None
    """The checkpoint of an earlier run that is gone on with."""
    teacher: str
    """SHA-256 of the teacher's weights, or "none"."""
    general: GeneralEncoder | None
    """An encoder that was distilled before."""


def make_run(
    made: PreparedDataset, options: TrainingOptions, device: Device, folder: Path, beginning: Beginning
) -> Run:
    """A run at its beginning, or where a checkpoint left it; BadInputError if that one cannot be gone on with so."""
    dataset, fold, kept = made.dataset, made.folds[options.fold], beginning.kept
    prepared = made.atlases[fold.atlases[0]]
    plan = kept.plan if kept else with_axes(prepared.plan, options.sam_axes)
    provenance = _provenance(made, fold, options, beginning)
    if kept:
        _require_same(kept, provenance, prepared, folder)
    if options.sam_axes not in (None, plan.teacher_axes):
        raise BadInputError(f"{folder}: was trained with other slices (--sam_axes); leave it out, or use --overwrite")
    atlas = kept.atlases[0] if kept else load_atlas(dataset, prepared, plan)
    nets = build_networks(plan, seed=options.seed)
    journal = Journal(folder / METRICS)
    state = kept.progress if kept else Progress(finished=(), stage="", iteration=0, optimizer=None, journal_size=0)
    if kept:
        nets.load_state_dict(kept.networks)
    elif beginning.general:
        start_from_(nets, plan, beginning.general, source=str(options.general_encoder))
    journal.cut(state.journal_size)
    labels = own_labels(dataset, fold, made.further_label_offsets, plan)
    return Run(
        plan=plan,
        provenance=provenance,
        atlases=(atlas,),
        atlas=view_atlas(atlas, plan, prior=has_prior(plan, options.ablations)).to(device.place),
        nets=nets.to(device.place),
        batches=Batches(
            fold.training,
            training_scans(prepared, plan, atlas, labels),
            atlas.grid,
            plan.grid,
            plan.augmentation,
            seed=options.seed,
            labelled=tuple(case for case in labels if case != atlas.case),
            n_labels=len(plan.labels.declared) if labels else 0,
            reflection=None if plan.reflection is None else plan.reflection.on_voxels(atlas.grid),
        ),
        device=device,
        folder=folder,
        journal=journal,
        progress=state,
    )


def _provenance(made: PreparedDataset, fold: Fold, options: TrainingOptions, beginning: Beginning) -> Provenance:
    return Provenance(
        trainer=options.trainer,
        fold=fold.name,
        seed=options.seed,
        teacher=beginning.teacher,
        ablations=tuple(sorted(options.ablations)),
        training_cases=fold.training,
        labelled_cases=fold.atlases,
        general_encoder=_general_encoder_id(options, beginning.kept),
        files=_files_sum(made, fold),
    )


def _require_memory(plan: Plan, device: Device, path: Path) -> None:
    """ResourceError if the processor's memory cannot hold a step, or a prediction later on; a GPU says so by itself."""
    if device.name == "cpu":
        remedy = "close other programs, or plan for less with -gpu_memory_target or -pl low_memory"
        require_memory(max(training_bytes(plan), prediction_bytes(plan)), str(path), remedy)


def _kept_checkpoint(folder: Path, options: TrainingOptions) -> Checkpoint | None:
    """The checkpoint to go on from, if asked for and there; UsageError where results would be lost unasked."""
    if options.resume and options.overwrite:
        raise UsageError(f"{folder}: --c would continue it and --overwrite begin anew; give one of them")
    if options.resume:
        kept = load_latest(folder)
        if kept is None and (folder / FINAL).exists():
            raise UsageError(f"{folder}: holds results, but no {LATEST} to continue; give --overwrite to lose them")
        if kept is None:
            _log.info("%s: nothing to continue, training starts anew", folder)
        return kept
    if any(path.name != LOCK for path in folder.iterdir()) and not options.overwrite:
        raise UsageError(f"{folder}: holds results; give --c to continue them or --overwrite to lose them")
    return None


def _general_encoder_id(options: TrainingOptions, kept: Checkpoint | None) -> str:
    """SHA-256 of the general encoder that training starts or started from."""
    if options.general_encoder is None:
        return kept.provenance.general_encoder if kept else NO_TEACHER
    return sha256(options.general_encoder)


def _stages(trainer: Trainer, run: Run, options: TrainingOptions) -> tuple[Stage, ...]:
    """All stages; without a teacher, a general encoder that was distilled before is kept but not distilled further."""
    taught = run.provenance.teacher != NO_TEACHER
    distilled = run.provenance.general_encoder != NO_TEACHER
    stages = trainer.stages(run.plan, distil=taught or distilled, ablations=options.ablations)
    return stages if taught else tuple(stage for stage in stages if not isinstance(stage, DistilSam))


def _fit(trainer: Trainer, run: Run, options: TrainingOptions, progress: ProgressBar, *, fresh: bool) -> None:
    """Fix the iteration counts before the first step, run the stages, keep the result."""
    if fresh:
        run.plan = _schedule(run, _stages(trainer, run, options), options)
        save_json(run.plan, run.folder / "plan.json")
        run.keep(run.progress)
    elif options.iterations is not None or options.time_budget_s is not None:
        _log.warning("a training goes on with the iteration counts that it began with; what was given has no effect")
    run.batches.scans_a_stage = run.plan.scans_a_stage
    stages = _stages(trainer, run, options)
    with progress("Training", sum(_units(run, stage) for stage in stages)) as advance:
        for _ in range(_done(run, stages)):
            advance()
        run.advance = advance
        trainer.run(run, stages)
    save_checkpoint(run.checkpoint(), run.folder / FINAL)
    run.keep(run.progress)  # a second time, since the one before it could need fields
    shutil.rmtree(run.folder / FIELDS, ignore_errors=True)


def _schedule(run: Run, stages: tuple[Stage, ...], options: TrainingOptions) -> Plan:
    """The plan with the iteration counts that this run will have."""
    if options.iterations is not None:
        return fix_iterations(run.plan, options.iterations)
    budget_s = options.time_budget_s or run.plan.time_budget_s
    return run.plan if budget_s is None else fit_to_budget(run, stages, budget_s)


def _units(run: Run, stage: Stage) -> int:
    """What a stage counts in the progress bar: a step and a refined field one each."""
    return stage.settings.iterations + len(refined_cases(stage, run))


def _done(run: Run, stages: tuple[Stage, ...]) -> int:
    """Fields of a stage that is under way are counted as they are read back."""
    return sum(_units(run, stage) for stage in stages if stage.name in run.progress.finished) + run.progress.iteration


def _files_sum(made: PreparedDataset, fold: Fold) -> str:
    """SHA-256 of the files that are learnt from: all images, and the labels."""
    images = {scan.case: scan.content for scan in made.fingerprint.scans}
    labels = [path for case in fold.atlases if (path := made.dataset.scan(case).label) is not None]
    parts = [*(images[case] for case in fold.training), content_of(*labels)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _require_same(kept: Checkpoint, now: Provenance, prepared: PreparedAtlas, folder: Path) -> None:
    """BadInputError if a training cannot go on as it began."""
    if kept.provenance != now:
        differences = _difference(kept.provenance, now)
        raise BadInputError(
            f"{folder}: was trained with other settings or scans ({differences}); put them back, or use --overwrite"
        )
    path, (then, edited) = prepared.folder / "plan.json", (kept.plan, prepared.plan)
    if then.data != edited.data:
        raise BadInputError(f"{path}: data was edited since training began; undo that, or train with --overwrite")
    if (then.grid.start_vox, then.grid.size_vox) != (edited.grid.start_vox, edited.grid.size_vox):
        raise BadInputError(
            f"{path}: grid lies elsewhere than when training began, and scans are aligned by what lies in it; "
            "undo that, or train with --overwrite"
        )


def _difference(before: Provenance, now: Provenance) -> str:
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return ", ".join(name for name in old if old[name] != new[name])


def _earlier_kept(folder: Path, options: TrainingOptions) -> contextlib.AbstractContextManager[None]:
    """With --overwrite, earlier results are lost only when this training has a checkpoint."""
    if options.overwrite:
        return earlier_aside(folder, until=LATEST, stays=LOCK)
    return contextlib.nullcontext()
