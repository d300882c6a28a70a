"""Pictures for people: predictions beside the truth, and training curves. Matplotlib is imported only when drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
from scipy import ndimage

from rrlsam.files import atomic_write

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


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """One case to draw; arrays (z, y, x) with axes to left, posterior, superior (`rrlsam.volume.to_canonical`)."""

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
    """What the journal says of one iteration (or of the mean of several)."""

    stage: str
    iteration: int
    terms: Mapping[str, float | None]
    seconds_per_iteration: NotRequired[float]


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
    image = row.image[position]
    low, high = np.percentile(image, (1, 99))
    _, y_mm, x_mm = row.spacing_mm
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
    seconds = [r["seconds_per_iteration"] for r in records if "seconds_per_iteration" in r]
    speed = f", {np.median(seconds):.3g} s per iteration" if seconds else ""
    panel.set_title(f"{stage}{speed}", fontsize=10)
    panel.set_xlabel("iteration")
    panel.set_ylabel("loss")
    if panel.lines:
        panel.legend(fontsize=8)


def _running_mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter1d(values, size=max(1, values.size // 50), mode="nearest") if values.size else values
