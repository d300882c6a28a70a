"""Comparing a folder of masks with the truth."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.evaluation.metrics import confusion, surface_distances, volume_mm3
from rrlsam.evaluation.summary import CaseResult, Evaluation, StructureResult
from rrlsam.geometry import geometry_of
from rrlsam.labels import LabelScheme, Structure, parse_labels
from rrlsam.scans.volume import files_by_name, read_labels, same_grid
from rrlsam.system.jsonio import read_whole
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress, silent


def labels_from_ints(values: Sequence[int]) -> LabelScheme:
    """A scheme of plain labels without names, for folders that have no dataset.json."""
    if not values or min(values) < 1 or len(set(values)) < len(values):
        raise UsageError(f"labels must be different whole numbers from 1 on, not {list(values)}")
    structures = tuple(Structure(name=f"label {value}", values=(value,)) for value in values)
    return LabelScheme(n_classes=max(values) + 1, structures=structures, regions_class_order=None, ignore=None)


def labels_from_file(path: Path) -> LabelScheme:
    """The scheme of a dataset.json; nothing but its labels is looked at."""
    try:
        content = json.loads(read_whole(path))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise BadInputError(f"{path}: labels are missing; see nnU-Net's dataset format")
    return parse_labels(content["labels"], content.get("regions_class_order"), source=str(path))


def evaluate_folder(
    reference: Path,
    prediction: Path,
    labels: LabelScheme,
    *,
    workers: int,
    tolerance_mm: float = 1.0,
    allow_missing: bool = False,
    allow_geometry_mismatch: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Compare the files of one case name in two folders; their endings may differ.

    As in nnU-Net, a region is the union of its values in both files, and voxels with the ignore label in the reference
    count for nothing. BadInputError when a prediction is missing (unless allowed), no case is left, or grids differ.
    """
    truths, guesses = files_by_name(reference), files_by_name(prediction)
    missing = tuple(sorted(truths.keys() - guesses.keys()))
    if missing and not allow_missing:
        raise BadInputError(
            f"{prediction}: no prediction for {listed(missing)}; predict these, or leave them out (--chill)"
        )
    pairs = [(case, truths[case], guesses[case]) for case in sorted(truths.keys() & guesses.keys())]
    if not pairs:
        raise BadInputError(f"{prediction}: no file is named as one in {reference}; nothing to compare")
    evaluation = evaluate_pairs(
        pairs,
        labels,
        workers=workers,
        tolerance_mm=tolerance_mm,
        allow_geometry_mismatch=allow_geometry_mismatch,
        progress=progress,
    )
    without_reference = tuple(sorted(guesses.keys() - truths.keys()))
    return replace(evaluation, without_prediction=missing, without_reference=without_reference)


def evaluate_pairs(
    pairs: Sequence[tuple[str, Path, Path]],
    labels: LabelScheme,
    *,
    workers: int,
    tolerance_mm: float = 1.0,
    allow_geometry_mismatch: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Compare masks given as (case, reference file, predicted file), one pair a case.

    `allow_geometry_mismatch`: masks of one size that lie in different places are compared voxel by voxel, in the
    millimetres of the prediction.
    """
    results = for_each(
        lambda pair: _compare(*pair, labels, tolerance_mm, allow_geometry_mismatch),
        {pair[0]: pair for pair in pairs},
        "Evaluating",
        workers=workers,
        progress=progress,
    )
    return Evaluation(
        structures=labels.structures,
        tolerance_mm=tolerance_mm,
        cases=tuple(results.values()),
        without_prediction=(),
        without_reference=(),
    )


def _compare(
    case: str, reference: Path, prediction: Path, labels: LabelScheme, tolerance_mm: float, lenient: bool
) -> CaseResult:
    truth_image, guess_image = read_labels(reference), read_labels(prediction)
    geometry = geometry_of(guess_image)  # a mask lies on its scan's grid, whatever a forgiven label's header says
    of_one_size = truth_image.GetSize() == guess_image.GetSize()
    if not (lenient and of_one_size) and not same_grid(geometry_of(truth_image), geometry):
        raise BadInputError(f"{prediction}: its grid differs from that of {reference}; resample it to the reference")
    truth, guess = sitk.GetArrayViewFromImage(truth_image), sitk.GetArrayViewFromImage(guess_image)
    valid = None if labels.ignore is None else truth != labels.ignore
    results = tuple(
        compare_masks(np.isin(truth, s.values), np.isin(guess, s.values), geometry.spacing_mm, valid, tolerance_mm)
        for s in labels.structures
    )
    return CaseResult(case=case, reference=reference, prediction=prediction, structures=results)


def compare_masks(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    valid: np.ndarray | None = None,
    tolerance_mm: float = 1.0,
) -> StructureResult:
    """All metrics of two boolean masks (z, y, x), see `rrlsam.evaluation.metrics`."""
    counts = confusion(reference, prediction, valid)
    distances = surface_distances(reference, prediction, spacing_mm, valid)
    return StructureResult(
        Dice=counts.dice,
        IoU=counts.iou,
        FP=counts.fp,
        TP=counts.tp,
        FN=counts.fn,
        TN=counts.tn,
        n_pred=counts.tp + counts.fp,
        n_ref=counts.tp + counts.fn,
        HD95=distances.hd95_mm,
        NSD=distances.nsd(tolerance_mm),
        volume_pred_mm3=volume_mm3(prediction, spacing_mm, valid),
        volume_ref_mm3=volume_mm3(reference, spacing_mm, valid),
    )
