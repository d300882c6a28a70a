"""Prediction of files: every scan of a folder, each on its own, masks in the scans' own grids."""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import DeviceLostError, GpuMemoryError, RrlsamError
from rrlsam.geometry import geometry_of
from rrlsam.nets.jacobian import fold_percent
from rrlsam.plan import Plan
from rrlsam.prediction.confidence import (
    StructureConfidence,
    mean_predicted_dice,
    reasons_to_look,
    structure_confidences,
    write_confidences,
)
from rrlsam.prediction.inference import Model, OnGrid
from rrlsam.prediction.native import segmentation_on_native, warped_on_native
from rrlsam.prediction.predicted import REGISTRATION_FOLDER, Ledger, Options, Report, ScanReport, require_safe_output
from rrlsam.scans.dataset import describe_dataset
from rrlsam.scans.inputs import InputScan
from rrlsam.scans.likeness import is_unlike
from rrlsam.scans.scan_checks import odd_geometry
from rrlsam.scans.volume import read_mended, write_like
from rrlsam.system.files import atomic_write
from rrlsam.system.isolation import one_case, tell_failure
from rrlsam.system.jsonio import load_json, save_json
from rrlsam.system.own_results import own_results
from rrlsam.system.progress import Progress

REPORT = "report.json"
CONFIDENCE = "confidence.csv"
_log = logging.getLogger(__name__)


def predict_scans(
    scans: Sequence[InputScan],
    models: Sequence[Model],
    output: Path,
    options: Options,
    progress: Progress,
    ledger: Ledger | None = None,
    *,
    part: str = "",
) -> Report:
    """Predict and write every scan, and OUTPUT/report.json. A bad scan does not stop the others; a lost device does.

    `ledger`: keeps record of each prediction; those that it knows to fit are not made again. `part`: marks report and
    confidences where other processes write theirs into the same folder.
    """
    require_safe_output(scans, output, options)
    reports, confidences = [], []
    with progress("Predicting", len(scans)) as advance:
        for scan in scans:
            try:
                report, confidence = _predict_or_keep(scan, models, output, options, ledger)
                reports.append(report)
                confidences.append((scan.case, confidence))
            except DeviceLostError:
                raise
            except RrlsamError as error:
                tell_failure(sum(report.failure is not None for report in reports), scan.case, error)
                reports.append(_failed(scan.case, error))
            advance()
    strange = reasons_to_look([confidence for _, confidence in confidences])
    reasons = {case: why for (case, _), why in zip(confidences, strange, strict=True)}
    report = Report(scans=tuple(replace(r, look_at=(*r.look_at, *reasons.get(r.case, ()))) for r in reports))
    keeping = contextlib.nullcontext(output) if ledger is None else own_results(output, of_part(REPORT, part))
    with keeping as folder:
        write_confidences(confidences, folder / of_part(CONFIDENCE, part))
        save_json(report, folder / of_part(REPORT, part))
    return report


def of_part(name: str, part: str) -> str:
    """What a report is called in the folder where other parts put theirs."""
    path = Path(name)
    return f"{path.stem}{part}{path.suffix}"


def _predict_or_keep(
    scan: InputScan, models: Sequence[Model], output: Path, options: Options, ledger: Ledger | None
) -> tuple[ScanReport, tuple[StructureConfidence, ...]]:
    if ledger is None:
        return _predict_where_it_fits(scan, models, output, options)
    known = ledger.kept(scan)
    if known is not None:
        _log.info("%s: predicted before, kept", scan.case)
        return known.report, known.confidence
    with own_results(output, scan.case) as folder:
        report, confidence = _predict_where_it_fits(scan, models, folder, options)
    ledger.note(scan, report, confidence)
    return report, confidence


def _predict_where_it_fits(
    scan: InputScan, models: Sequence[Model], output: Path, options: Options
) -> tuple[ScanReport, tuple[StructureConfidence, ...]]:
    """Predict a scan, on the processor if the GPU's memory does not suffice for it."""
    try:
        with one_case(scan.case):
            return predict_scan(scan, models, output, options)
    except GpuMemoryError as error:
        _log.warning("%s: %s; it is now predicted on the processor", scan.case, error)
    with one_case(scan.case):
        return predict_scan(scan, [model.on_processor() for model in models], output, options)


def _failed(case: str, error: RrlsamError) -> ScanReport:
    return ScanReport(
        case=case,
        failure=str(error),
        alignment=None,
        fold_percent=None,
        predicted_dice=None,
        look_at=("it could not be predicted",),
        seconds=0.0,
    )


def worst_fold_percent(output: Path) -> float:
    """The largest share of folded voxels in a folder of predictions that were registered, in percent."""
    scans = load_json(Report, output / REPORT).scans
    return max(scan.fold_percent for scan in scans if scan.fold_percent is not None)


def predict_scan(
    scan: InputScan, models: Sequence[Model], output: Path, options: Options
) -> tuple[ScanReport, tuple[StructureConfidence, ...]]:
    """Predict one scan and write what was asked for; also how far each structure can be trusted."""
    began = time.monotonic()
    image, mended = read_mended(scan.images, scan.repairs)
    results = [
        model.predict(
            image,
            average=options.average,
            overlap=options.overlap,
            refinement_iterations=options.refinement_iterations,
            joint=options.save_registration,
        )
        for model in models
    ]
    labels, native = models[0].plan.labels, geometry_of(image)
    looked_at = image if options.evidence else None
    found = segmentation_on_native(results, native, labels, looked_at, keep=options.save_probabilities)
    if found.exported is not None:
        with atomic_write(output / f"{scan.case}.npz") as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, probabilities=found.exported)
    if options.save_registration:
        warped = warped_on_native(results, native, labels, "registration")
        write_like(warped, image, output / REGISTRATION_FOLDER / f"{scan.case}{scan.ending}")
    write_like(found.mask, image, output / f"{scan.case}{scan.ending}")
    voxel_ml = float(np.prod(native.spacing_mm)) / 1000
    second_opinion = warped_on_native(results, native, labels, "image_registration")
    confidence = structure_confidences(found.mask, second_opinion, found.promised_dice, labels, voxel_ml)
    strange = _strange(results)
    likenesses = [r.likeness for r in results if r.likeness is not None]
    report = ScanReport(
        case=scan.case,
        failure=None,
        alignment="affine" if all(r.alignment == "affine" for r in results) else "centre",
        fold_percent=max(fold_percent(r.displacement[0].numpy()) for r in results),
        predicted_dice=0.0 if strange else mean_predicted_dice(confidence),
        look_at=(*mended, *_odd_geometry(scan, image), *strange),
        seconds=time.monotonic() - began,
        likeness=min(likenesses, default=None),
    )
    return report, confidence


def _strange(results: Sequence[OnGrid]) -> tuple[str, ...]:
    """What is strange about a scan before any structure is looked at: for any of the models' atlases."""
    found = []
    if any(result.alignment != "affine" for result in results):
        found.append("it could not be aligned with the atlas")
    unlike = [result.likeness for result in results if result.likeness is not None and is_unlike(result.likeness)]
    if unlike:
        found.append(f"its intensities hardly follow the atlas's (correlation {min(unlike):.2f}): another modality?")
    return tuple(found)


def _odd_geometry(scan: InputScan, image: sitk.Image) -> tuple[str, ...]:
    return tuple(f"{path.name}: {found.problem}" for path in scan.images for found in odd_geometry(path, image))


def write_dataset_json(plan: Plan, ending: str, n_cases: int, folder: Path) -> None:
    """The labels that the masks hold, as nnU-Net writes them beside its predictions."""
    with atomic_write(folder / "dataset.json") as temporary:
        text = describe_dataset(plan.channel_names, plan.labels, ending, n_cases)
        temporary.write_text(text, encoding="utf-8")
