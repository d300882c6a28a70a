"""Score a finished training once more, on the scans that it never learnt from."""

from pathlib import Path

from rrlsam.engine.device import choose_device
from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.planning.request import prepare_folds
from rrlsam.prediction.validation import validate
from rrlsam.scans.dataset import Dataset
from rrlsam.settings import FINAL, TrainingOptions
from rrlsam.system.lock import sole_writer
from rrlsam.system.progress import Progress
from rrlsam.workspace import Workspace


def revalidate(dataset: Dataset, workspace: Workspace, options: TrainingOptions, progress: Progress) -> str:
    """Predict and score the held-out cases of a finished fold anew; returns what to tell the user."""
    model = model_folder(workspace.results(dataset.name), options.trainer, options.plans_name)
    folder = fold_folder(model, options.fold)
    if not (folder / FINAL).is_file():
        raise UsageError(f"{folder}: holds no finished training to score; train without --val")
    with sole_writer(folder):
        return _revalidate(dataset, workspace, folder, options, progress)


def _revalidate(
    dataset: Dataset, workspace: Workspace, folder: Path, options: TrainingOptions, progress: Progress
) -> str:
    checkpoint = load_checkpoint(folder / FINAL)
    made = prepare_folds(
        dataset,
        workspace,
        (options.fold,),
        plans_name=options.plans_name,
        atlases=checkpoint.provenance.labelled_cases,
        plan_only=True,
        progress=progress,
    )
    fold = made.folds[options.fold]
    seen = sorted(set(fold.validation) & set(checkpoint.provenance.training_cases))
    if seen:
        raise BadInputError(
            f"{folder}: was trained on {listed(seen)}, which the split now holds out; undo that or train again"
        )
    device, keep = choose_device(options.device), options.validation_probabilities
    return validate(made.dataset, fold, folder, device, progress, save_probabilities=keep)
