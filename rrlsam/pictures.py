"""Pictures for people: predictions beside the truth, and training curves. Matplotlib is imported only when drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from scipy import ndimage

from rrlsam.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_PANEL_INCHES = 3.0
_PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#ffe119",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
)
"""Colour of label n: entry n - 1, and round again."""

_THUMBNAIL_INCHES = 1.5
_MOST_ON_A_SHEET = 100
_GRID_LINES = 24
_STRAIGHT: dict[str, Any] = {"color": "#888888", "linewidth": 0.4, "linestyle": ":"}
_MOVED: dict[str, Any] = {"color": "#ffe119", "linewidth": 0.7}


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """One case to draw; arrays (z, y, x), axes to left, posterior, superior (`rrlsam.scans.volume.to_canonical`)."""

    case: str
    image: np.ndarray
    truth: np.ndarray
    """Label values."""
    predictions: Mapping[str, np.ndarray]
    """Label values by the name of what made them."""
    dice: float
    spacing_mm: tuple[float, float, float]
    """z, y, x."""


class TrainingRecord(TypedDict):
    """What the journal says of one iteration."""

    stage: str
    iteration: int
    terms: Mapping[str, float | None]


def overview_picture(rows: Sequence[OverviewRow], path: Path) -> None:
    """Draw a PNG with a row a case: the slice alone, with the truth, with each prediction.

    The slice is the axial one with most foreground in the truth (if it has none, in the first prediction); seen from
    below, as radiologists do: the patient's left is on the right.
    """
    if not rows:
        raise ValueError("at least one row is needed")
    columns = 2 + max(len(row.predictions) for row in rows)
    figure = _figure(columns * _PANEL_INCHES, len(rows) * (_PANEL_INCHES + 0.3))
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for row, axes in zip(rows, panels, strict=True):
        for panel in axes:
            panel.set_axis_off()
        position = _fullest_slice(row)
        overlays = {f"{row.case}: Dice {row.dice:.3f}": None, "truth": row.truth, **row.predictions}
        for panel, (title, labels) in zip(axes, overlays.items(), strict=False):
            _draw_slice(panel, row, position)
            panel.set_title(title, fontsize=9)
            if labels is not None:
                _draw_contours(panel, labels[position])
    _save(figure, path)


def registration_picture(
    fixed: np.ndarray,
    aligned: np.ndarray,
    warped: np.ndarray,
    displacement: np.ndarray,
    spacing_mm: tuple[float, float, float],
    path: Path,
) -> None:
    """Draw a PNG of one axial slice: the fixed scan, the moving one after the affine and after the field, and a grid.

    Images are (z, y, x) on the fixed scan's grid, turned as by `to_canonical`; `displacement` is (3, z, y, x) in voxels
    of that grid, components x, y, z. The grid shows where its straight lines, dotted, are read.
    """
    position = int((fixed > fixed.mean()).sum(axis=(1, 2)).argmax())
    figure = _figure(4 * _PANEL_INCHES, _PANEL_INCHES + 0.3)
    (panels,) = figure.subplots(1, 4, squeeze=False)
    for panel, (title, image) in zip(
        panels,
        {"fixed": fixed, "moving, affine": aligned, "moving, warped": warped, "grid": fixed}.items(),
        strict=True,
    ):
        panel.set_axis_off()
        panel.set_title(title, fontsize=9)
        _draw_image(panel, image[position], spacing_mm)
    _draw_grid(panels[3], displacement[:2, position])
    _save(figure, path)


def training_picture(records: Sequence[TrainingRecord], path: Path) -> None:
    """Draw a PNG with the loss terms over iterations, a panel a stage; pale: as recorded, strong: a running mean.

    The running mean spans a fiftieth of the stage. An axis is logarithmic when all its values are positive.
    """
    stages: dict[str, list[TrainingRecord]] = {}
    for record in records:
        stages.setdefault(record["stage"], []).append(record)
    figure = _figure(8.0, 3.0 * max(len(stages), 1))
    panels = figure.subplots(max(len(stages), 1), 1, squeeze=False)[:, 0]
    if not stages:
        panels[0].set_title("no iterations yet")
    for panel, (stage, of_stage) in zip(panels, stages.items(), strict=False):
        _draw_stage(panel, stage, of_stage)
    _save(figure, path)


def contact_sheet(named: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Draw a PNG with the middle axial slice of each named image (z, y, x), in reading order; at most 100."""
    shown = named[:_MOST_ON_A_SHEET]
    columns = min(len(shown), 10)
    rows = -(-len(shown) // columns)
    figure = _figure(columns * _THUMBNAIL_INCHES, rows * (_THUMBNAIL_INCHES + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, image) in zip(panels, shown, strict=False):
        panel.imshow(image[image.shape[0] // 2], cmap="gray", origin="upper")
        panel.set_title(title, fontsize=7)
    _save(figure, path)


def _figure(width_inches: float, height_inches: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), dpi=_DPI, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def _fullest_slice(row: OverviewRow) -> int:
    for labels in (row.truth, *row.predictions.values()):
        areas = (labels > 0).sum(axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return row.truth.shape[0] // 2


def _draw_slice(panel: Axes, row: OverviewRow, position: int) -> None:
    _draw_image(panel, row.image[position], row.spacing_mm)


def _draw_grid(panel: Axes, displacement: np.ndarray) -> None:
    """Lines a few voxels apart, as they are and where a displacement (x and y, y, x) moves them."""
    _, height, width = displacement.shape
    step = max(2, round(max(height, width) / _GRID_LINES))
    y, x = np.mgrid[0:height, 0:width].astype(float)
    for moved, style in ((np.zeros_like(displacement), _STRAIGHT), (displacement, _MOVED)):
        for row in range(0, height, step):
            panel.plot((x + moved[0])[row], (y + moved[1])[row], **style)
        for column in range(0, width, step):
            panel.plot((x + moved[0])[:, column], (y + moved[1])[:, column], **style)
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)


def _draw_image(panel: Axes, image: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    low, high = np.percentile(image, (1, 99))
    _, y_mm, x_mm = spacing_mm
    panel.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=y_mm / x_mm, interpolation="nearest")


def _draw_contours(panel: Axes, labels: np.ndarray) -> None:
    height, width = labels.shape
    x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
    for value in np.unique(labels[labels > 0]).tolist():
        mask = np.pad(labels == value, 1).astype(np.float32)
        panel.contour(x, y, mask, levels=[0.5], colors=[_PALETTE[(int(value) - 1) % len(_PALETTE)]], linewidths=1)
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)


def _draw_stage(panel: Axes, stage: str, records: Sequence[TrainingRecord]) -> None:
    positive = True
    for index, name in enumerate(dict.fromkeys(name for record in records for name in record["terms"])):
        points = [(r["iteration"], r["terms"][name]) for r in records if name in r["terms"]]
        iterations, values = (
            np.array([p for p in points if p[1] is not None and np.isfinite(p[1])], dtype=np.float64).reshape(-1, 2).T
        )
        colour = _PALETTE[index % len(_PALETTE)]
        panel.plot(iterations, values, color=colour, alpha=0.25, linewidth=0.8)
        panel.plot(iterations, _running_mean(values), color=colour, linewidth=1.5, label=name)
        positive = positive and bool((values > 0).all())
    if positive:
        panel.set_yscale("log")
    panel.set_title(stage, fontsize=10)
    panel.set_xlabel("iteration")
    panel.set_ylabel("loss")
    if panel.lines:
        panel.legend(loc="upper right", fontsize=8)


def _running_mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter1d(values, size=max(1, values.size // 50), mode="nearest") if values.size else values
