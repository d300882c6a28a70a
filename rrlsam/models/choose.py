"""Which trained models there are, and which one is meant."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import UsageError, listed
from rrlsam.scans.dataset import is_number, numbered
from rrlsam.settings import FINAL
from rrlsam.workspace import OWN_FOLDER

SEPARATOR = "__"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A folder with finished folds of one data set, trainer and plan."""

    folder: Path
    dataset: str
    trainer: str
    plans: str
    folds: tuple[str, ...]
    """Folds that have the checkpoint, sorted."""
    checkpoint: str = FINAL
    """Name of the checkpoint in each fold."""

    def checkpoints(self, folds: Iterable[str] | None = None) -> tuple[Path, ...]:
        """The checkpoints of the folds asked for; all that there are by default."""
        wanted = tuple(folds) if folds is not None else self.folds
        missing = [fold for fold in wanted if fold not in self.folds]
        if missing:
            raise UsageError(
                f"{self.folder}: fold {', '.join(missing)} is not trained; finished folds: {', '.join(self.folds)}"
            )
        return tuple(fold_folder(self.folder, fold) / self.checkpoint for fold in wanted)


def model_folder(results: Path, trainer: str, plans: str) -> Path:
    """Where the folds of a trainer and a plan lie below a data set's results."""
    return results / f"{trainer.replace(':', '-')}{SEPARATOR}{plans}"


def fold_folder(model: Path, fold: str) -> Path:
    """Where one fold lies."""
    return model / f"fold_{fold}"


def read_model(folder: Path, checkpoint: str = FINAL) -> TrainedModel | None:
    """The model of a folder, or None if no fold in it has the checkpoint (by default: is finished)."""
    folds = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not folds:
        return None
    whole = folder.absolute()
    trainer, _, plans = whole.name.partition(SEPARATOR)
    dataset = whole.parent.parent.name if whole.parent.name == OWN_FOLDER else whole.parent.name
    return TrainedModel(
        folder=folder, dataset=dataset, trainer=trainer, plans=plans, folds=tuple(folds), checkpoint=checkpoint
    )


def require_model(folder: Path, checkpoint: str = FINAL) -> TrainedModel:
    """The model of a folder; UsageError if no fold in it has the checkpoint."""
    model = read_model(folder, checkpoint)
    if model is None:
        raise UsageError(f"{folder}: holds no fold with {checkpoint} (fold_*/{checkpoint})")
    return model


def find_models(results: Path, checkpoint: str = FINAL) -> tuple[TrainedModel, ...]:
    """Every model with that checkpoint below the results root, sorted by folder."""
    folders = sorted(path for path in results.glob(f"*/{OWN_FOLDER}/*{SEPARATOR}*") if path.is_dir())
    return tuple(model for model in (read_model(folder, checkpoint) for folder in folders) if model is not None)


def select_model(
    results: Path,
    *,
    dataset: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    checkpoint: str = FINAL,
) -> TrainedModel:
    """The one model that fits; UsageError lists the choices when there are none or several."""
    there = find_models(results, checkpoint)
    fitting = [
        model
        for model in there
        if (dataset is None or _names(model.dataset, dataset))
        and (trainer is None or model.trainer == trainer.replace(":", "-"))
        and (plans is None or model.plans == plans)
    ]
    if len(fitting) == 1:
        return fitting[0]
    choices = listed([f"-d {m.dataset} -tr {m.trainer} -p {m.plans} (folds {', '.join(m.folds)})" for m in there], "; ")
    what = "several trained models fit" if fitting else "no trained model fits"
    raise UsageError(f"{results}: {what}; there are: {choices or 'none, train one with rrlsam_train'}")


def _names(dataset: str, given: str) -> bool:
    return dataset == given or (is_number(given) and dataset.startswith(numbered(int(given))))
