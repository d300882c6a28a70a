"""What a trained fold is worth on its held-out cases. For reporting only: nothing is chosen by it."""

import logging
from pathlib import Path

from rrlsam.engine.device import Device
from rrlsam.evaluation.evaluate import evaluate_pairs
from rrlsam.evaluation.summary import Evaluation, table, write_csv, write_summary
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.planning.folds import Fold
from rrlsam.prediction.inference import Model
from rrlsam.prediction.predict import predict_scans, write_dataset_json
from rrlsam.prediction.predicted import REGISTRATION_FOLDER, Options
from rrlsam.scans.dataset import Dataset
from rrlsam.scans.inputs import InputScan
from rrlsam.settings import FINAL
from rrlsam.system.progress import Progress
from rrlsam.system.resources import usable_cores

VALIDATION_FOLDER = "validation"
_log = logging.getLogger(__name__)


def validate(
    dataset: Dataset, fold: Fold, folder: Path, device: Device, progress: Progress, *, save_probabilities: bool = False
) -> str:
    """Predict and score the validation cases; returns the table, or a sentence when nothing is held out."""
    if not fold.validation:
        return f"fold {fold.name}: no labelled scan is held out, so there is no validation score; the model is {folder}"
    model = Model(load_checkpoint(folder / FINAL), device)
    output = folder / VALIDATION_FOLDER
    scans = [
        InputScan(case=scan.case, images=scan.images, ending=dataset.file_ending, repairs=scan.repairs)
        for scan in map(dataset.scan, fold.validation)
    ]
    options = Options(save_registration=True, save_probabilities=save_probabilities)
    report = predict_scans(scans, [model], output, options, progress)
    write_dataset_json(model.plan, dataset.file_ending, len(scans), output)
    done = [scan.case for scan in scans if scan.case not in report.failures]
    scores = {
        "registration": _score(dataset, done, output / REGISTRATION_FOLDER, progress),
        "segmentation": _score(dataset, done, output, progress),
    }
    failed = "".join(f"\nnot scored, {case}: {reason}" for case, reason in report.failures.items())
    teacher = "" if model.provenance.teacher != "none" else "; trained without SAM's distillation (--sam none)"
    return f"fold {fold.name}, atlas {', '.join(fold.atlases)}{teacher}\n{table(scores)}{failed}\nmodel: {folder}"


def _score(dataset: Dataset, cases: list[str], predictions: Path, progress: Progress) -> Evaluation:
    pairs = []
    for case in cases:
        label = dataset.scan(case).label
        if label is not None:
            pairs.append((case, label, predictions / f"{case}{dataset.file_ending}"))
    evaluation = evaluate_pairs(
        pairs,
        dataset.labels,
        workers=usable_cores(),
        allow_geometry_mismatch=any(scan.repairs.allow_geometry_mismatch for scan in dataset.scans),
        progress=progress,
    )
    write_summary(evaluation, predictions / "summary.json")
    write_csv(evaluation, predictions / "summary.csv")
    return evaluation
