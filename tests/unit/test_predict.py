"""What is written for each scan that is predicted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rrlsam.errors import DeviceLostError
from rrlsam.geometry import geometry_of
from rrlsam.labels import LabelScheme, Structure
from rrlsam.prediction.inference import Model
from rrlsam.prediction.predict import predict_scans, worst_fold_percent, write_dataset_json
from rrlsam.prediction.predicted import Options
from rrlsam.scans.inputs import InputScan, find_inputs
from rrlsam.scans.volume import same_grid
from rrlsam.system.progress import silent

REGIONS = LabelScheme(
    n_classes=3,
    structures=(Structure(name="whole", values=(1, 2)), Structure(name="core", values=(2,))),
    regions_class_order=(1, 2),
    ignore=3,
)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_mask_has_the_grid_and_the_ending_of_its_scan(tmp_path, phantoms, make_plan, ending, threshold_model):
    image, _ = phantoms.phantom(0)
    turn = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    scan = tmp_path / "in" / f"a_0000{ending}"
    phantoms.write_volume(image[0], scan, (0.7, 0.9, 1.3), (10.0, -20.0, 30.0), turn)
    report = predict_scans(find_inputs(scan, 1), [threshold_model(make_plan())], tmp_path / "out", Options(), silent)
    assert report.failures == {}
    mask, given = sitk.ReadImage(tmp_path / "out" / f"a{ending}"), sitk.ReadImage(scan)
    assert same_grid(geometry_of(mask), geometry_of(given))
    assert mask.GetPixelID() == sitk.sitkUInt8
    array = sitk.GetArrayFromImage(given)
    assert np.array_equal(sitk.GetArrayFromImage(mask), (array > 50).astype(int) + (array > 150))


@pytest.fixture
def two_scans(tmp_path, phantoms) -> Path:
    """A sound scan and one that is cut short."""
    for case in ("bad", "good"):
        phantoms.write_volume(phantoms.phantom(0)[0][0], tmp_path / "in" / f"{case}_0000.nii.gz")
    bad = tmp_path / "in" / "bad_0000.nii.gz"
    bad.write_bytes(bad.read_bytes()[:1000])
    return tmp_path / "in"


def test_a_bad_scan_does_not_stop_the_others(two_scans, tmp_path, make_plan, threshold_model):
    report = predict_scans(
        find_inputs(two_scans, 1), [threshold_model(make_plan())], tmp_path / "out", Options(), silent
    )
    assert set(report.failures) == {"bad"}
    assert "bad_0000.nii.gz" in report.failures["bad"]
    assert (tmp_path / "out" / "good.nii.gz").is_file()
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


def test_the_report_tells_of_every_scan(two_scans, tmp_path, make_plan, threshold_model):
    options = Options(save_registration=True)
    predict_scans(find_inputs(two_scans, 1), [threshold_model(make_plan())], tmp_path / "out", options, silent)
    bad, good = json.loads((tmp_path / "out" / "report.json").read_text())["scans"]
    assert (bad["case"], bad["alignment"], bad["fold_percent"]) == ("bad", None, None)
    assert (good["case"], good["failure"], good["alignment"], good["fold_percent"]) == ("good", None, "centre", 0.0)
    assert [reason.split(" (")[0] for reason in good["look_at"]] == [
        "it could not be aligned with the atlas",
        "its intensities hardly follow the atlas's",
    ]
    assert worst_fold_percent(tmp_path / "out") == 0.0


@pytest.mark.parametrize(
    ("second", "reason"),
    [({"alignment": "centre"}, "could not be aligned"), ({"likeness": 0.0}, "hardly follow the atlas's")],
    ids=["unaligned", "unlike"],
)
def test_nothing_is_promised_of_a_scan_that_is_strange_to_any_model(
    three_scans, threshold_model, tmp_path, second, reason
):
    sound = {"alignment": "affine", "likeness": 0.9}
    models = [threshold_model(**sound), threshold_model(**sound)]
    report = predict_scans(three_scans, models, tmp_path / "sound", Options(), silent)
    assert all(scan.predicted_dice == pytest.approx(1.0) and scan.look_at == () for scan in report.scans)
    models[1] = threshold_model(**sound | second)
    report = predict_scans(three_scans, models, tmp_path / "strange", Options(), silent)
    assert all(scan.predicted_dice == 0.0 and reason in scan.look_at[0] for scan in report.scans)


def test_the_input_is_not_changed(two_scans, tmp_path, make_plan, threshold_model):
    before = {path.name: path.read_bytes() for path in two_scans.iterdir()}
    predict_scans(find_inputs(two_scans, 1), [threshold_model(make_plan())], tmp_path / "out", Options(), silent)
    assert {path.name: path.read_bytes() for path in two_scans.iterdir()} == before


def test_a_missing_channel_is_a_failure_of_its_scan(tmp_path, phantoms, make_plan, threshold_model):
    phantoms.write_volume(phantoms.phantom(0)[0][0], tmp_path / "in" / "a_0000.nii.gz")
    scans = find_inputs(tmp_path / "in", 2)
    report = predict_scans(scans, [threshold_model(make_plan())], tmp_path / "out", Options(), silent)
    assert "a_0001.nii.gz" in report.failures["a"]


@pytest.mark.parametrize(("labels", "channels"), [(None, 3), (REGIONS, 2)], ids=["classes", "regions"])
def test_probabilities_are_stored_in_nnunets_order(tmp_path, phantoms, make_plan, labels, channels, threshold_model):
    """Classes with the background first, or regions without it; axes c, z, y, x."""
    plan = make_plan() if labels is None else make_plan(labels=labels)
    image = phantoms.phantom(0)[0][0]
    phantoms.write_volume(image, tmp_path / "in" / "a_0000.nii.gz")
    options = Options(save_probabilities=True)
    predict_scans(find_inputs(tmp_path / "in", 1), [threshold_model(plan)], tmp_path / "out", options, silent)
    stored = np.load(tmp_path / "out" / "a.npz")["probabilities"]
    truth = [image <= 50, (image > 50) & (image <= 150), image > 150]
    expected = np.stack(truth if labels is None else [truth[1] | truth[2], truth[2]]).astype(float)
    assert stored.shape == (channels, *image.shape)
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_the_labels_are_written_beside_the_masks(tmp_path, make_plan):
    write_dataset_json(make_plan(labels=REGIONS), ".mha", 4, tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert content["regions_class_order"] == [1, 2]
    assert (content["file_ending"], content["numTraining"]) == (".mha", 4)


def let_fail(error: Exception, model: Model, monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[int]:
    """Let the model's first predictions raise an error; what is returned counts its moves to the processor."""
    predict, left, moves = type(model).predict, [error] * times, []

    def failing(self: Model, image: sitk.Image, **options: Any) -> Any:
        if left:
            raise left.pop()
        return predict(self, image, **options)

    monkeypatch.setattr(type(model), "predict", failing)
    monkeypatch.setattr(type(model), "on_processor", lambda self: moves.append(1) or self)
    return moves


def test_a_scan_too_large_for_the_gpu_is_predicted_on_the_processor(
    three_scans, threshold_model, monkeypatch, tmp_path
):
    model = threshold_model()
    moves = let_fail(torch.OutOfMemoryError("CUDA out of memory."), model, monkeypatch, times=1)
    report = predict_scans(three_scans, [model], tmp_path / "out", Options(), silent)
    assert report.failures == {}
    assert moves == [1]


def test_a_scan_for_which_memory_does_not_suffice_stops_no_other(three_scans, threshold_model, monkeypatch, tmp_path):
    model = threshold_model()
    let_fail(MemoryError("Unable to allocate 9 GiB"), model, monkeypatch, times=1)
    report = predict_scans(three_scans, [model], tmp_path / "out", Options(), silent)
    assert list(report.failures) == [three_scans[0].case]
    assert "not enough memory" in report.failures[three_scans[0].case]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_gpu_that_goes_away_ends_the_prediction(three_scans, threshold_model, monkeypatch, tmp_path):
    """Every further scan would fail."""
    model = threshold_model()
    let_fail(torch.AcceleratorError("CUDA error: unspecified launch failure"), model, monkeypatch, times=1)
    with pytest.raises(DeviceLostError, match="continue_prediction"):
        predict_scans(three_scans, [model], tmp_path / "out", Options(), silent)


def test_an_error_of_ours_costs_one_scan_and_is_not_taken_for_a_bad_one(
    three_scans, threshold_model, monkeypatch, tmp_path
):
    model = threshold_model()
    let_fail(ZeroDivisionError("ours"), model, monkeypatch, times=1)
    report = predict_scans(three_scans, [model], tmp_path / "out", Options(), silent)
    assert list(report.failures) == ["c0"]
    assert report.failures["c0"].startswith("internal error, ZeroDivisionError: ours; run again with --debug")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.fixture
def three_scans(phantoms, tmp_path) -> tuple[InputScan, ...]:
    for number in range(3):
        phantoms.write_volume(phantoms.phantom(number)[0][0], tmp_path / "in" / f"c{number}_0000.nii.gz")
    return find_inputs(tmp_path / "in", 1)
