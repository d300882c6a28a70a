"""How far a prediction can be trusted, told without any truth."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from rrlsam.labels import LabelScheme
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import record

LOW_DICE = 0.5
"""A structure whose predicted Dice is lower is worth a look."""
OUTLIER = 5.0
"""Median absolute deviations from the other scans' median, beyond which a structure's value is worth a look."""
FEWEST_FOR_OUTLIERS = 5


@record
class StructureConfidence:
    """One structure of one scan."""

    structure: str
    volume_ml: float
    agreement: float
    """Dice of segmentation and warped atlas label; 1 if both are empty."""
    expected_dice: float
    """Dice that the class probabilities promise for the mask."""
    predicted_dice: float
    """The geometric mean of the two; 0 for a structure that neither shows: if it is there, it was missed."""

    @property
    def shown(self) -> bool:
        """Whether segmentation or registration show the structure."""
        return self.volume_ml > 0 or self.agreement < 1


def expected_dice(inside: np.ndarray, total: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Dice promised by probabilities, a structure each: 2 sum(p in mask) / (sum(p) + voxels of the mask)."""
    both = total + voxels
    return np.where(both > 0, 2 * inside / np.maximum(both, 1e-12), 1.0)


def structure_confidences(
    mask: np.ndarray, warped: np.ndarray, promised: np.ndarray, labels: LabelScheme, voxel_ml: float
) -> tuple[StructureConfidence, ...]:
    """Of a segmentation and a registration of one scan (z, y, x label values); `promised`: `expected_dice`."""
    found = []
    present, voxels = voxels_in_both(mask, warped)
    for structure, expected in zip(labels.structures, promised, strict=True):
        own = np.isin(present, structure.values)
        first, second = voxels[own].sum(), voxels[:, own].sum()
        agreement = float(2 * voxels[np.ix_(own, own)].sum() / (first + second)) if first + second else 1.0
        found.append(
            StructureConfidence(
                structure=structure.name,
                volume_ml=float(first * voxel_ml),
                agreement=agreement,
                expected_dice=float(expected),
                predicted_dice=float(np.sqrt(agreement * expected)) if first + second else 0.0,
            )
        )
    return tuple(found)


def mean_predicted_dice(structures: Sequence[StructureConfidence]) -> float:
    """Of a scan, over the structures that are shown; 0 if none is."""
    shown = [structure.predicted_dice for structure in structures if structure.shown]
    return float(np.mean(shown)) if shown else 0.0


def voxels_in_both(
    first: Integer[np.ndarray, "z y x"], second: Integer[np.ndarray, "z y x"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n n"]]:
    """The values of two masks, and how many voxels have each in the first (rows) and each in the second (columns)."""
    largest = int(max(first.max(initial=0), second.max(initial=0)))
    occurs = np.zeros(largest + 1, dtype=bool)
    for slice_ in (*first, *second):
        occurs[slice_] = True
    present, place = np.flatnonzero(occurs), np.cumsum(occurs) - 1
    n = len(present)
    both = np.zeros(n * n, dtype=np.int64)
    for a, b in zip(first, second, strict=True):  # by slices: bincount takes eight bytes a voxel
        both += np.bincount((place[a] * n + place[b]).ravel(), minlength=n * n)
    return present, both.reshape(n, n)


def reasons_to_look(scans: Sequence[tuple[StructureConfidence, ...]]) -> list[tuple[str, ...]]:
    """For each of some scans, what is strange about it: by itself, and (given a few of them) beside the others."""
    reasons: list[list[str]] = [[] for _ in scans]
    for index in range(len(scans[0]) if scans else 0):
        of_all = [scan[index] for scan in scans]
        name = of_all[0].structure
        volumes = _deviations(np.log([max(s.volume_ml, 1e-6) for s in of_all]))
        confidences = _deviations(np.array([s.predicted_dice for s in of_all]))
        for own, scan, volume, confidence in zip(reasons, of_all, volumes, confidences, strict=True):
            if scan.volume_ml == 0:
                own.append(f"{name} is missing")
                continue
            if abs(volume) > OUTLIER:
                own.append(f"{name} is {'larger' if volume > 0 else 'smaller'} than in the other scans")
            if scan.predicted_dice < LOW_DICE or confidence < -OUTLIER:
                own.append(f"{name} is uncertain")
    return [tuple(own) for own in reasons]


def write_confidences(scans: Sequence[tuple[str, tuple[StructureConfidence, ...]]], path: Path) -> None:
    """A CSV with a row a scan and structure."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "structure", "predicted_dice", "agreement", "expected_dice", "volume_ml"])
        for case, structures in scans:
            for s in structures:
                numbers = (s.predicted_dice, s.agreement, s.expected_dice, s.volume_ml)
                writer.writerow([case, s.structure, *(f"{number:.4f}" for number in numbers)])


def _deviations(values: np.ndarray) -> np.ndarray:
    """Distances from the median in median absolute deviations; 0 for all of too few values."""
    if len(values) < FEWEST_FOR_OUTLIERS:
        return np.zeros(len(values))
    centred = values - np.median(values)
    return centred / max(float(np.median(np.abs(centred))), 0.02)
