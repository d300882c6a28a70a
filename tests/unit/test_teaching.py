import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from rrlsam.data.batches import Batches
from rrlsam.engine.device import Device
from rrlsam.errors import BadInputError, ResourceError
from rrlsam.nets.sam import build_teacher, read_encoder_weights
from rrlsam.settings import TrainingOptions
from rrlsam.system.files import sha256
from rrlsam.system.progress import silent
from rrlsam.teacher.feature_cache import FeatureKey, disk_bytes
from rrlsam.teacher.sam_releases import TeacherFile
from rrlsam.teacher.teaching import (
    FeatureCost,
    TeacherSource,
    announce,
    feature_cost,
    sam_source,
    teacher_features,
    teacher_of,
    teacher_side,
    with_axes,
)

KEYS = tuple(
    FeatureKey(case=case, content="c", teacher_id="0" * 64, side_px=64, grid=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0))
    for case in ("a", "b", "c")
)


def test_the_cost_counts_slices_and_half_precision_numbers():
    cost = feature_cost(KEYS, 0.5, 20)
    assert cost == FeatureCost(cases=3, seconds=30.0, disk_mb=3 * 256 * 120 * 2 / 1e6)


def test_features_on_disk_are_no_larger_than_announced(make_run, tiny_sam_checkpoint: Path, tmp_path: Path):
    features_of(make_run().batches, make_run().plan, tiny_sam_checkpoint, tmp_path)
    stored = list(tmp_path.rglob("*.b2nd"))
    assert len(stored) == 4
    key = dataclasses.replace(KEYS[0], grid=(8, 8, 8))
    headers = 4 * 1000
    assert 0 < sum(path.stat().st_size for path in stored) <= disk_bytes([key] * 4) + headers


@pytest.mark.parametrize(("budget", "offered"), [(None, False), (700.0, False), (500.0, True)])
def test_the_way_without_sam_is_offered_where_time_is_short(tmp_path: Path, caplog, budget, offered: bool):
    with caplog.at_level(logging.INFO, "rrlsam"):
        announce(FeatureCost(cases=3, seconds=600.0, disk_mb=0.12), tmp_path / "features", budget)
    assert "SAM's features of 3 scans: about 10 min and at most 0.1 MB" in caplog.text
    assert ("give --sam none" in caplog.text) is offered


def test_a_disk_that_is_too_small_is_found_out_before_the_start(tmp_path: Path):
    with pytest.raises(ResourceError, match="SAM's features need 1000000000000 MB"):
        announce(FeatureCost(cases=1, seconds=1.0, disk_mb=1e12), tmp_path, None)


def test_a_slice_is_timed(tiny_sam_checkpoint: Path, monkeypatch):
    teacher = build_teacher(read_encoder_weights(tiny_sam_checkpoint), 64)
    seen: list[int] = []
    forward = teacher.encoder.forward
    monkeypatch.setattr(teacher.encoder, "forward", lambda images: seen.append(len(images)) or forward(images))
    assert 0 < teacher.seconds_per_slice(torch.rand(1, 1, 9, 16, 16)) < 10
    assert set(seen) == {1}


def features_of(batches: Batches, plan, sam: Path | None, folder: Path, teacher_id: str = "0" * 64):
    device = Device("cpu", torch.float32, "for tests")
    source = TeacherSource(teacher_id=teacher_id, build=None)
    if sam is not None:
        source = sam_source(TeacherFile(path=sam, sha256=teacher_id))
    return teacher_features(batches, plan, source, folder, device, silent)


def test_the_cost_is_said_once_and_cached_features_need_no_weights(make_run, tiny_sam_checkpoint, tmp_path, caplog):
    run = make_run()
    teacher_id = sha256(tiny_sam_checkpoint)
    with caplog.at_level(logging.INFO, "rrlsam"):
        first = features_of(run.batches, run.plan, tiny_sam_checkpoint, tmp_path, teacher_id)
        assert caplog.text.count("SAM's features of 4 scans: about") == 1
        again = features_of(run.batches, run.plan, tmp_path / "gone.pth", tmp_path, teacher_id)
        assert caplog.text.count("SAM's features of") == 1
    assert first.keys() == again.keys() == set(run.batches.cases)
    for case in first:
        assert first[case].dtype == np.float16
        np.testing.assert_array_equal(first[case], again[case])


def test_only_what_is_missing_is_computed_again(make_run, tiny_sam_checkpoint: Path, tmp_path: Path, caplog):
    run = make_run()
    features_of(run.batches, run.plan, tiny_sam_checkpoint, tmp_path)
    next(tmp_path.rglob("b.b2nd")).unlink()
    with caplog.at_level(logging.INFO, "rrlsam"):
        features_of(run.batches, run.plan, tiny_sam_checkpoint, tmp_path)
    assert "SAM's features of 1 scan: about" in caplog.text


class Ones:
    """A teacher that is not SAM."""

    def features(self, volume: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        return torch.ones(1, 256, *grid)

    def seconds_per_slice(self, volume: torch.Tensor) -> float:
        return 0.25


def test_any_teacher_of_slices_will_do(make_run, tmp_path: Path, caplog):
    run = make_run(teacher_axes=(0, 1, 2))
    sides: list[int] = []
    source = TeacherSource(teacher_id="1" * 64, build=lambda side, device: sides.append(side) or Ones(), side_px=32)
    with caplog.at_level(logging.INFO, "rrlsam"):
        found = teacher_features(run.batches, run.plan, source, tmp_path, Device("cpu", torch.float32, ""), silent)
    assert sides == [32]
    assert all((features == 1).all() for features in found.values())
    assert f"about {4 * 3 * 16 * 0.25:.0f} s" in caplog.text


def test_features_along_all_axes_are_others_than_along_one(make_run, tiny_sam_checkpoint: Path, tmp_path: Path):
    one, three = make_run(), make_run(teacher_axes=(0, 1, 2))
    first = features_of(one.batches, one.plan, tiny_sam_checkpoint, tmp_path)
    second = features_of(three.batches, three.plan, tiny_sam_checkpoint, tmp_path)
    assert all(np.abs(first[case] - second[case]).max() > 0.01 for case in first)
    again = features_of(one.batches, one.plan, None, tmp_path)
    assert all((first[case] == again[case]).all() for case in first)


@pytest.mark.parametrize(("axes", "seen"), [(None, (2,)), ((0, 1), (0, 1))])
def test_axes_that_are_asked_for_take_the_place_of_the_planned_ones(make_plan, axes, seen):
    assert with_axes(make_plan(teacher_axes=(2,)), axes).teacher_axes == seen


@pytest.mark.parametrize(
    ("grid", "axes", "side"), [((40, 8, 8), (0,), 224), ((40, 8, 8), (1,), 640), ((80, 8, 8), (0, 1, 2), 1024)]
)
def test_sam_sees_at_least_a_token_a_cell(grid: tuple[int, int, int], axes: tuple[int, ...], side: int):
    assert teacher_side(grid, axes) == side


def options_with(sam: str | None = None, *ablations: str) -> TrainingOptions:
    return TrainingOptions(fold="0", sam=sam, ablations=frozenset(ablations))


def chosen(options: TrainingOptions, given: TeacherSource | None = None, began_with: str | None = None):
    return teacher_of(options, given, began_with=began_with, progress=silent)


def test_a_given_teacher_wins_over_sam_but_not_over_the_ablation():
    given = TeacherSource(teacher_id="1" * 64, build=None)
    assert chosen(options_with("no_such_file"), given) is given
    assert chosen(options_with(None, "no_distillation"), given) is None


def test_a_training_that_goes_on_keeps_its_teacher():
    assert chosen(options_with(), began_with="none") is None
    kept = chosen(options_with(), began_with="1" * 64)
    assert kept is not None
    assert (kept.teacher_id, kept.build) == ("1" * 64, None)
    given = TeacherSource(teacher_id="2" * 64, build=None)
    with pytest.raises(BadInputError, match=f"{given.teacher_id}: training began with another teacher"):
        chosen(options_with(), given, began_with="1" * 64)
    with pytest.raises(BadInputError, match="--sam none: training began with another teacher"):
        chosen(options_with("none"), began_with="1" * 64)
