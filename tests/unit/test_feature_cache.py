import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Size3
from rrlsam.nets.sam import build_teacher, read_encoder_weights
from rrlsam.teacher.feature_cache import (
    FeatureKey,
    cached_features,
    fill_cache,
    load_features,
)

ONE = (1.0, 1.0, 1.0)
KEY = FeatureKey(
    case="scan_1", content="c0ffee", teacher_id="0123456789abcdef", side_px=64, grid=(1, 2, 2), spacing_mm=ONE
)


class CountingTeacher:
    """Features equal to the volume's mean; counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def features(self, volume: Tensor, grid: Size3) -> Tensor:
        self.calls += 1
        return volume.mean().expand(1, 256, *grid)


def volume_of(case: str) -> Tensor:
    return torch.full((1, 1, 2, 4, 4), float(case.rpartition("_")[2]))


def array_file(folder: Path) -> Path:
    return folder / "0123456789ab_64_z" / "scan_1.b2nd"


def test_features_are_computed_once(tmp_path: Path):
    teacher = CountingTeacher()
    first = cached_features(KEY, teacher, volume_of, tmp_path)
    second = cached_features(KEY, teacher, volume_of, tmp_path)
    assert teacher.calls == 1
    assert first.dtype == second.dtype == np.float16
    assert first.shape == (256, 1, 2, 2)
    np.testing.assert_array_equal(first, second)
    assert (second == 1).all()
    assert array_file(tmp_path).is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"content": "decaf"},
        {"grid": (2, 2, 2)},
        {"side_px": 128},
        {"teacher_id": "fedcba9876543210"},
        {"axes": (0, 1, 2)},
        {"spacing_mm": (3.0, 1.0, 1.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_features_depend_on_makes_them_anew(tmp_path: Path, change: dict[str, object]):
    teacher = CountingTeacher()
    cached_features(KEY, teacher, volume_of, tmp_path)
    changed = dataclasses.replace(KEY, **change)
    assert load_features(changed, tmp_path) is None
    assert cached_features(changed, teacher, volume_of, tmp_path).shape[1:] == changed.grid
    assert teacher.calls == 2


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no array", "no sidecar", "bad sidecar"])
def test_damaged_entries_are_made_anew(tmp_path: Path, damage: str):
    teacher = CountingTeacher()
    whole = cached_features(KEY, teacher, volume_of, tmp_path)
    path = array_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "flipped":
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no array":
        path.unlink()
    elif damage == "no sidecar":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("{")
    assert load_features(KEY, tmp_path) is None
    np.testing.assert_array_equal(cached_features(KEY, teacher, volume_of, tmp_path), whole)
    assert teacher.calls == 2
    assert load_features(KEY, tmp_path) is not None


def test_without_a_teacher_stored_features_are_loaded_and_missing_ones_asked_for(tmp_path: Path):
    with pytest.raises(ResourceError, match="SAM's features of scan_1 are not there; give --sam FILE"):
        cached_features(KEY, None, volume_of, tmp_path)
    cached_features(KEY, CountingTeacher(), volume_of, tmp_path)
    assert cached_features(KEY, None, volume_of, tmp_path).shape == (256, 1, 2, 2)


def test_loading_needs_no_segment_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_features(KEY, CountingTeacher(), volume_of, tmp_path)
    for name in ["segment_anything", *(name for name in sys.modules if name.startswith("segment_anything"))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert load_features(KEY, tmp_path) is not None


def test_features_that_are_not_finite_are_refused(tmp_path: Path):
    with pytest.raises(BadInputError, match="scan_nan: SAM's features are not finite"):
        cached_features(dataclasses.replace(KEY, case="scan_nan"), CountingTeacher(), volume_of, tmp_path)
    assert not list(tmp_path.rglob("*.b2nd"))


def test_filling_makes_only_what_is_missing_and_estimates(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    steps: list[str] = []

    @contextlib.contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
        steps.append(f"{description}: {total}")
        yield lambda: steps.append("step")

    keys = [dataclasses.replace(KEY, case=f"scan_{i}") for i in range(3)]
    teacher = CountingTeacher()
    cached_features(keys[1], teacher, volume_of, tmp_path)
    with caplog.at_level(logging.INFO):
        assert fill_cache(keys, teacher, volume_of, tmp_path, progress) == 2
    assert teacher.calls == 3
    assert steps == ["SAM features: 2", "step", "step"]
    assert "for 2 cases" in caplog.text
    assert fill_cache(keys, teacher, volume_of, tmp_path) == 0
    assert teacher.calls == 3


def test_an_interrupted_filling_goes_on(tmp_path: Path):
    def interrupted(case: str) -> Tensor:
        if case == "scan_2":
            raise KeyboardInterrupt
        return volume_of(case)

    keys = [dataclasses.replace(KEY, case=f"scan_{i}") for i in range(3)]
    teacher = CountingTeacher()
    with pytest.raises(KeyboardInterrupt):
        fill_cache(keys, teacher, interrupted, tmp_path)
    assert fill_cache(keys, teacher, volume_of, tmp_path) == 1
    assert teacher.calls == 3


def test_the_real_teacher_fills_the_cache(tiny_sam_checkpoint: Path, tmp_path: Path):
    teacher = build_teacher(read_encoder_weights(tiny_sam_checkpoint), 64)
    assert fill_cache([KEY], teacher, lambda case: torch.rand(1, 1, 2, 8, 8), tmp_path) == 1
    features = load_features(KEY, tmp_path)
    assert features is not None
    assert float(features.std()) > 0
