"""Predicted masks as labels of a new raw data set, on which stock nnU-Net trains."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rrlsam import __version__
from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.models.choose import find_models
from rrlsam.prediction.predicted import Report
from rrlsam.scans.dataset import Dataset, Scan, describe_dataset, numbered
from rrlsam.scans.scan_checks import read_fitting_label
from rrlsam.scans.volume import ending_of, read_channels
from rrlsam.system.files import is_clutter
from rrlsam.system.jsonio import load_json, record, save_json
from rrlsam.system.staging import staged_folder

PROVENANCE = "rrlsam_provenance.json"
_REPORT = re.compile(r"report(_part_\d+_of_\d+)?\.json")


@record
class LabelProvenance:
    """Which labels of a data set a person drew, and which a model predicted."""

    source: str
    """The data set that the scans come from."""
    rrlsam_version: str
    least_confidence: float | None
    true_labels: tuple[str, ...]
    """Cases whose label, drawn by a person, was learnt from."""
    pseudo_labels: dict[str, float | None]
    """Cases with a predicted mask as label, and the Dice that was estimated for it (mean over structures)."""
    left_out: dict[str, float]
    """Predicted cases whose estimated Dice was too low."""
    not_predicted: tuple[str, ...]
    """Scans of the data set without a mask."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A data set that was written."""

    folder: Path
    provenance: LabelProvenance


def export_dataset(
    dataset: Dataset,
    predictions: Path,
    raw: Path,
    number: int,
    atlases: Sequence[str],
    *,
    least_confidence: float | None = None,
) -> Written:
    """Write a raw data set of the atlases with their true labels and the predicted scans with their masks.

    `atlases`: all cases whose label was learnt from. `least_confidence`: scans whose predicted Dice (mean over
    structures) is lower are left out. The data set appears whole or not at all; no true label but the atlases' is read.
    """
    masks = _find_masks(dataset, predictions, atlases)
    confidences = read_confidences(predictions)
    chosen, left_out = _filtered(masks, confidences, least_confidence, predictions)
    if not chosen:
        raise BadInputError(f"{predictions}: no mask is at least as confident as {least_confidence}; lower it")
    taken = sorted(path.name for path in raw.glob(f"{numbered(number)}*"))
    if taken:
        raise UsageError(f"{raw}: number {number} is taken by {taken[0]}; give another with --id")
    labels = {case: dataset.label_of(case) for case in atlases} | chosen
    provenance = LabelProvenance(
        source=dataset.name,
        rrlsam_version=__version__,
        least_confidence=least_confidence,
        true_labels=tuple(sorted(atlases)),
        pseudo_labels={case: confidences.get(case) for case in sorted(chosen)},
        left_out=left_out,
        not_predicted=tuple(scan.case for scan in dataset.scans if scan.case not in {*masks, *atlases}),
    )
    folder = raw / f"{numbered(number)}{dataset.name.partition('_')[2]}Pseudo"
    with staged_folder(folder) as staging:
        for name in ("imagesTr", "labelsTr"):
            (staging / name).mkdir()
        for case, label in sorted(labels.items()):
            _add(dataset, dataset.scan(case), label, staging)
        text = describe_dataset(dataset.channel_names, dataset.labels, dataset.file_ending, len(labels))
        (staging / "dataset.json").write_text(text, encoding="utf-8")
        save_json(provenance, staging / PROVENANCE)
    return Written(folder=folder, provenance=provenance)


def read_confidences(predictions: Path) -> dict[str, float]:
    """Each case's predicted Dice, mean over structures, from the report.json (of every part) beside the masks.

    Of several reports of one case the newest counts.
    """
    paths = [path for path in predictions.glob("report*.json") if _REPORT.fullmatch(path.name)]
    reports = [load_json(Report, path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]
    scans = [scan for report in reports for scan in report.scans]
    return {scan.case: scan.predicted_dice for scan in scans if scan.predicted_dice is not None}


def find_atlases(dataset: Dataset, results: Path | None) -> tuple[str, ...]:
    """The only labelled case, or all whose labels the trained models of the data set learnt from.

    UsageError if there is no model, or if not all learnt from the same labels.
    """
    if len(dataset.labelled) == 1:
        return dataset.labelled
    models = [] if results is None else [m for m in find_models(results) if m.dataset == dataset.name]
    checkpoints = [load_checkpoint(path) for model in models for path in model.checkpoints()]
    found = sorted({tuple(sorted(c.provenance.labelled_cases)) for c in checkpoints})
    if len(found) != 1:
        ways = " or ".join(",".join(cases) for cases in found)
        what = f"its trained models learnt from the labels of {ways}" if found else "no trained model of it was found"
        raise UsageError(f"{dataset.name}: {what}; name those that the masks were predicted from with --atlas")
    return found[0]


def _find_masks(dataset: Dataset, predictions: Path, atlases: Sequence[str]) -> dict[str, Path]:
    """The mask of every predicted scan of the data set but the atlases."""
    if not predictions.is_dir():
        raise UsageError(f"{predictions}: no such folder; give rrlsam_predict's output with -i")
    ending = dataset.file_ending
    files = [path for path in sorted(predictions.iterdir()) if path.name.endswith(ending) and not is_clutter(path)]
    masks = {path.name.removesuffix(ending): path for path in files}
    known = {scan.case for scan in dataset.scans}
    strangers = [case for case in masks if case not in known]
    if strangers:
        raise BadInputError(
            f"{predictions}: {len(strangers)} masks are of no scan in imagesTr or imagesUn of {dataset.name} ("
            f"{listed(strangers)}); predict those folders"
        )
    if not masks:
        raise BadInputError(f"{predictions}: no masks ending in {ending}; give rrlsam_predict's output with -i")
    return {case: path for case, path in masks.items() if case not in atlases}


def _filtered(
    masks: Mapping[str, Path], confidences: Mapping[str, float], least: float | None, predictions: Path
) -> tuple[dict[str, Path], dict[str, float]]:
    if least is None:
        return dict(masks), {}
    unknown = [case for case in masks if case not in confidences]
    if unknown:
        raise BadInputError(
            f"{predictions}/report.json: lacks {listed(unknown)}; predict again, or drop --least_confidence"
        )
    left_out = {case: confidences[case] for case in sorted(masks) if confidences[case] < least}
    return {case: path for case, path in masks.items() if case not in left_out}, left_out


def _add(dataset: Dataset, scan: Scan, label: Path, folder: Path) -> None:
    """Copy one case, once its label was seen to lie on its grid and to hold declared values only."""
    read_fitting_label(label, scan.images[0], read_channels(scan.images), dataset.labels)
    for channel, path in enumerate(scan.images):
        _copy(path, folder / "imagesTr" / f"{scan.case}_{channel:04d}{dataset.file_ending}")
    _copy(label, folder / "labelsTr" / f"{scan.case}{dataset.file_ending}")


def _copy(source: Path, target: Path) -> None:
    if ending_of(source) != ending_of(target):
        raise BadInputError(f"{source}: does not end in {ending_of(target)}, as dataset.json says")
    shutil.copyfile(source, target)
