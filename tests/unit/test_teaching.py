import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from rrlsam.data.batches import Batches
from rrlsam.engine.device import Device
from rrlsam.errors import ResourceError
from rrlsam.nets.sam import build_teacher, read_encoder_weights
from rrlsam.system.files import sha256
from rrlsam.system.progress import silent
from rrlsam.teacher.feature_cache import FeatureKey, disk_bytes
from rrlsam.teacher.teaching import FeatureCost, announce, feature_cost, teacher_features

KEYS = tuple(
    FeatureKey(case=case, content="c0ffee", teacher_id="0" * 64, side_px=64, grid=(4, 5, 6)) for case in ("a", "b", "c")
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
    return teacher_features(batches, plan, teacher_id, sam, folder, device, silent)


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
