"""The demo's picture: best, median and worst held-out scan."""

from pathlib import Path

import SimpleITK as sitk

from rrlsam.evaluation.summary import CaseResult, Evaluation
from rrlsam.geometry import geometry_of
from rrlsam.pictures import OverviewRow, overview_picture
from rrlsam.scans.volume import ENDINGS, read_image, read_labels, to_canonical


def draw_cases(evaluation: Evaluation, images: Path, path: Path) -> None:
    """Draw image, truth and prediction of the best, the median and the worst case."""
    ranked = sorted(evaluation.cases, key=lambda case: case.mean_dice, reverse=True)
    places = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    overview_picture([_row(name, case, images) for name, case in places.items()], path)


def _row(name: str, case: CaseResult, images: Path) -> OverviewRow:
    scan = next(images / f"{case.case}_0000{e}" for e in ENDINGS if (images / f"{case.case}_0000{e}").exists())
    image = to_canonical(read_image(scan))
    return OverviewRow(
        case=f"{name}: {case.case}",
        image=sitk.GetArrayFromImage(image),
        truth=sitk.GetArrayFromImage(to_canonical(read_labels(case.reference))),
        predictions={"segmentation": sitk.GetArrayFromImage(to_canonical(read_labels(case.prediction)))},
        dice=case.mean_dice,
        spacing_mm=geometry_of(image).spacing_mm,
    )
