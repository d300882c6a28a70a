import struct
from pathlib import Path

import numpy as np
import pytest

from rrlsam.pictures import OverviewRow, TrainingRecord, overview_picture, training_picture


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def red_pixels(path: Path) -> int:
    """Number of pixels in the colour of label 1."""
    from matplotlib.image import imread

    red, green, blue = imread(path)[..., :3].transpose(2, 0, 1)
    return int(((red > 0.7) & (green < 0.4) & (blue < 0.5)).sum())


def row(case: str, label: int = 1) -> OverviewRow:
    truth = np.zeros((6, 16, 20), dtype=np.int32)
    truth[3, 4:10, 5:12] = label
    image = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32) + truth
    predictions = {"registration": np.roll(truth, 2, 2), "segmentation": np.zeros_like(truth)}
    return OverviewRow(
        case=case, image=image, truth=truth, predictions=predictions, dice=0.8, spacing_mm=(3.0, 1.0, 1.0)
    )


def test_overview_is_a_png_with_a_row_a_case_and_coloured_contours(tmp_path: Path):
    overview_picture([row("best"), row("worst")], tmp_path / "overview.png")
    assert png_size(tmp_path / "overview.png") == (1200, 660)
    assert red_pixels(tmp_path / "overview.png") > 100


def test_overview_of_empty_masks_and_a_flat_image(tmp_path: Path):
    empty = np.zeros((4, 8, 8), dtype=np.int32)
    flat = OverviewRow(
        case="empty",
        image=empty.astype(np.float32),
        truth=empty,
        predictions={"segmentation": np.ones_like(empty)},
        dice=float("nan"),
        spacing_mm=(1.0, 1.0, 1.0),
    )
    overview_picture([flat], tmp_path / "overview.png")
    assert png_size(tmp_path / "overview.png") == (900, 330)


def test_overview_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one row"):
        overview_picture([], tmp_path / "overview.png")


def test_training_picture_has_a_panel_a_stage(tmp_path: Path):
    records: list[TrainingRecord] = [
        {"stage": stage, "iteration": i, "terms": {"dice": 1 / (i + 1), other: value}}
        for stage, other, value in (("joint", "similarity", -0.5), ("mutual", "smoothness", 0.1))
        for i in range(60)
    ]
    records.append({"stage": "mutual", "iteration": 60, "terms": {"dice": float("nan")}})
    training_picture(records, tmp_path / "progress.png")
    assert png_size(tmp_path / "progress.png") == (800, 600)
    assert red_pixels(tmp_path / "progress.png") > 100


def test_training_picture_before_the_first_iteration(tmp_path: Path):
    training_picture([], tmp_path / "progress.png")
    assert png_size(tmp_path / "progress.png") == (800, 300)
