"""What an evaluation found, and how it is written: nnU-Net's summary.json, CSV, and a text table."""

import csv
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rrlsam.errors import BadInputError
from rrlsam.labels import Structure
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import read_whole

_NNUNET_METRICS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")
_OWN_METRICS = ("HD95", "NSD", "volume_pred_mm3", "volume_ref_mm3")
_CSV_HEADER: tuple[str, ...] = ("case", "structure", "label", *_NNUNET_METRICS, *_OWN_METRICS)
_DEFINITIONS = {
    "HD95": "mm; larger of the two directed 95th percentiles of distances between surface voxels; null: infinite, "
    "one of the masks is empty; NaN: a mask ends where nobody labelled; the mean is over finite values",
    "HD95_infinite": "number of cases whose HD95 is infinite",
    "NSD": "share of surface voxels within the tolerance of the other surface, 0 to 1",
    "volume_pred_mm3": "volume of the prediction, mm3",
    "volume_ref_mm3": "volume of the reference, mm3",
    "NaN": "undefined, such as the Dice of two empty masks; means over cases skip it",
}


@dataclass(frozen=True, kw_only=True)
class StructureResult:
    """How well one structure of one case was found; field names are the keys of summary.json."""

    Dice: float
    IoU: float
    FP: int
    TP: int
    FN: int
    TN: int
    n_pred: int
    n_ref: int
    HD95: float
    NSD: float
    volume_pred_mm3: float
    volume_ref_mm3: float


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One compared pair of files."""

    case: str
    reference: Path
    prediction: Path
    structures: tuple[StructureResult, ...]
    """In the order of the label scheme."""

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the structures that have one; NaN when none has."""
        return nan_mean(np.array([result.Dice for result in self.structures]))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All compared cases, sorted by name."""

    structures: tuple[Structure, ...]
    tolerance_mm: float
    cases: tuple[CaseResult, ...]
    without_prediction: tuple[str, ...]
    without_reference: tuple[str, ...]

    def column(self, structure: int, metric: str) -> np.ndarray:
        """One metric of one structure (by position), a number a case."""
        return np.array([getattr(case.structures[structure], metric) for case in self.cases], dtype=np.float64)


def nan_mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN when there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def label_key(structure: Structure) -> str:
    """nnU-Net's name of a label or region: "1" or "(1, 2)"."""
    return str(structure.values[0]) if len(structure.values) == 1 else str(structure.values)


def summary(evaluation: Evaluation, folder: Path | None = None) -> dict[str, object]:
    """The content of summary.json, file names relative to `folder` (None: as they were given).

    nnU-Net's keys hold nnU-Net's values: undefined is NaN, `mean` skips it over cases, `foreground_mean` does not skip
    it over structures. Beside them stand our metrics, explained under "definitions"; their means skip NaN, and an
    infinite HD95 is None (null in JSON).
    """
    means = {label_key(s): _case_means(evaluation, i) for i, s in enumerate(evaluation.structures)}
    return {
        "definitions": {**_DEFINITIONS, "tolerance_mm": evaluation.tolerance_mm},
        "foreground_mean": _foreground_mean(means),
        "mean": means,
        "metric_per_case": [_case_entry(evaluation, case, folder) for case in evaluation.cases],
    }


def is_summary(path: Path) -> bool:
    """Whether a file is a summary.json as it is written here; nnU-Net's own has no definitions."""
    try:
        content = json.loads(read_whole(path))
    except (BadInputError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"definitions", "metric_per_case"} <= content.keys()


def is_csv(path: Path) -> bool:
    """Whether a file is a table as it is written here."""
    try:
        return read_whole(path).startswith(",".join(_CSV_HEADER).encode())
    except BadInputError:
        return False


def write_summary(evaluation: Evaluation, path: Path) -> None:
    """Write summary.json; file names in it are relative to its folder."""
    text = json.dumps(summary(evaluation, path.parent), indent=4, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write one row a case and structure; undefined is nan, infinite is inf."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=_CSV_HEADER)
        writer.writeheader()
        for case in evaluation.cases:
            for structure, result in zip(evaluation.structures, case.structures, strict=True):
                names = {"case": case.case, "structure": structure.name, "label": label_key(structure)}
                writer.writerow({**names, **asdict(result)})


def table(evaluations: dict[str, Evaluation]) -> str:
    """Text table: a row a structure and their mean, two columns (Dice, HD95) an evaluation.

    Dice is mean +- standard deviation over cases; in the last row, the mean of the structures' means and the deviation
    of the cases' mean Dice. HD95 is the mean of its finite values, with the number of infinite ones behind it.
    """
    structures = next(iter(evaluations.values())).structures
    if any(evaluation.structures != structures for evaluation in evaluations.values()):
        raise ValueError("the evaluations must be of the same structures")
    header = ["structure", *(f"{name} {what}" for name in evaluations for what in ("Dice", "HD95 mm"))]
    rows = [header]
    for i, structure in enumerate(structures):
        rows.append([structure.name, *(cell for e in evaluations.values() for cell in _cells(e, i))])
    rows.append(["mean", *(cell for e in evaluations.values() for cell in _mean_cells(e))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], *_warnings(evaluations)])


def _case_means(evaluation: Evaluation, structure: int) -> dict[str, float | int]:
    means: dict[str, float | int] = {}
    for metric in (*_NNUNET_METRICS, *_OWN_METRICS):
        means[metric] = nan_mean(evaluation.column(structure, metric))
    means["HD95_infinite"] = int(np.isinf(evaluation.column(structure, "HD95")).sum())
    return means


def _foreground_mean(means: dict[str, dict[str, float | int]]) -> dict[str, float | int]:
    columns = {metric: np.array([m[metric] for m in means.values()]) for metric in next(iter(means.values()))}
    mean: dict[str, float | int] = {metric: float(columns[metric].mean()) for metric in _NNUNET_METRICS}
    mean |= {metric: nan_mean(columns[metric]) for metric in _OWN_METRICS}
    return {**mean, "HD95_infinite": int(columns["HD95_infinite"].sum())}


def _case_entry(evaluation: Evaluation, case: CaseResult, folder: Path | None) -> dict[str, object]:
    def name(path: Path) -> str:
        return str(path) if folder is None else os.path.relpath(path, folder)

    metrics: dict[str, dict[str, float | None]] = {}
    for structure, result in zip(evaluation.structures, case.structures, strict=True):
        metrics[label_key(structure)] = {**asdict(result), "HD95": None if math.isinf(result.HD95) else result.HD95}
    return {"metrics": metrics, "prediction_file": name(case.prediction), "reference_file": name(case.reference)}


def _cells(evaluation: Evaluation, structure: int) -> tuple[str, str]:
    dice, hd95 = evaluation.column(structure, "Dice"), evaluation.column(structure, "HD95")
    return _dice_cell(nan_mean(dice), dice), _hd95_cell(nan_mean(hd95), int(np.isinf(hd95).sum()))


def _mean_cells(evaluation: Evaluation) -> tuple[str, str]:
    positions = range(len(evaluation.structures))
    dice = np.array([nan_mean(evaluation.column(i, "Dice")) for i in positions])
    hd95 = np.array([nan_mean(evaluation.column(i, "HD95")) for i in positions])
    infinite = sum(int(np.isinf(evaluation.column(i, "HD95")).sum()) for i in positions)
    cases = np.array([case.mean_dice for case in evaluation.cases])
    return _dice_cell(nan_mean(dice), cases), _hd95_cell(nan_mean(hd95), infinite)


def _dice_cell(mean: float, spread: np.ndarray) -> str:
    finite = spread[np.isfinite(spread)]
    return f"{mean:.3f} +- {finite.std():.3f}" if finite.size else "-"


def _hd95_cell(mean: float, infinite: int) -> str:
    return ("-" if math.isnan(mean) else f"{mean:.2f}") + (f" ({infinite} infinite)" if infinite else "")


def _warnings(evaluations: dict[str, Evaluation]) -> list[str]:
    lines = []
    for name, evaluation in evaluations.items():
        for i, structure in enumerate(evaluation.structures):
            dice = evaluation.column(i, "Dice")
            if np.isfinite(dice).any() and nan_mean(dice) == 0:
                lines.append(f"warning: {name}: {structure.name} was not found in any case (Dice 0)")
    return lines
