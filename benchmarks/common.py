"""What the benchmarks share: the scans that are scored, their scores, and the machine."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from rrlsam import __version__
from rrlsam.evaluation.evaluate import evaluate_pairs
from rrlsam.evaluation.summary import Evaluation
from rrlsam.prediction.predict import CONFIDENCE
from rrlsam.scans.dataset import Dataset, Scan, group_channels
from rrlsam.system.resources import usable_cores

RESULTS = Path(__file__).parent / "results"


def test_scans(dataset: Dataset) -> list[Scan]:
    """The scans of imagesTs with the labels of labelsTs."""
    files = sorted((dataset.folder / "imagesTs").iterdir())
    cases, _ = group_channels(files, dataset.file_ending)
    folder, ending = dataset.folder / "labelsTs", dataset.file_ending
    return [
        Scan(case=c, images=tuple(f[i] for i in sorted(f)), label=folder / f"{c}{ending}") for c, f in cases.items()
    ]


def validation_scans(dataset: Dataset, training: Sequence[str]) -> list[Scan]:
    """The labelled scans that no training saw."""
    return [scan for scan in dataset.scans if scan.label is not None and scan.case not in training]


def link_files(paths: Iterable[Path], folder: Path) -> Path:
    """The folder, with a link to each file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    return folder


def score(scans: Sequence[Scan], folder: Path, dataset: Dataset) -> Evaluation:
    """Scores of the masks FOLDER/CASE.ENDING."""
    pairs = [(s.case, s.label, folder / f"{s.case}{dataset.file_ending}") for s in scans if s.label is not None]
    return evaluate_pairs(pairs, dataset.labels, workers=usable_cores())


def summary(scores: Evaluation, without: Sequence[str]) -> dict[str, object]:
    """Means over scans and structures; all but `dice` and `per_structure` leave some structures out.

    `lost`: structures that are empty in a mask and not in truth, or the other way round, and so have no HD95.
    """
    dice = np.array([scores.column(i, "Dice") for i in range(len(scores.structures))], dtype=float)
    kept = [i for i, structure in enumerate(scores.structures) if structure.name not in without]

    def values(column: str) -> np.ndarray:
        return np.array([scores.column(i, column) for i in kept], dtype=float)

    def mean(column: str) -> float:
        found = values(column)
        return float(found[np.isfinite(found)].mean())

    return {
        "dice": float(np.nanmean(dice)),
        "dice_without": float(np.nanmean(dice[kept])),
        "hd95_mm": mean("HD95"),
        "lost": int(np.isinf(values("HD95")).sum()),
        "nsd": mean("NSD"),
        "per_case": np.nanmean(dice[kept], axis=0).tolist(),
        "per_structure": {s.name: float(np.nanmean(d)) for s, d in zip(scores.structures, dice, strict=True)},
    }


def confidence_correlation(folder: Path, scores: Evaluation) -> float:
    """Pearson's correlation of predicted and true Dice over all scans and structures of a folder of predictions."""
    with (folder / CONFIDENCE).open(encoding="utf-8") as stream:
        predicted = {(row["case"], row["structure"]): float(row["predicted_dice"]) for row in csv.DictReader(stream)}
    pairs = [
        (predicted[case.case, structure.name], result.Dice)
        for case in scores.cases
        for structure, result in zip(scores.structures, case.structures, strict=True)
        if np.isfinite(result.Dice)
    ]
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def hardware() -> str:
    """Processor, and threads of this process on how many cores."""
    return f"{platform.machine()}, {torch.get_num_threads()} of {usable_cores()} cores, {_processor()}"


def versions() -> str:
    """What computed."""
    return f"rrlsam {__version__}, torch {torch.__version__}, SimpleITK {sitk.Version.VersionString()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
