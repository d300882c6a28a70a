"""Which predictions are kept when a prediction is continued, and where none may be written."""

import json
import os
from pathlib import Path

import pytest

from rrlsam.errors import UsageError
from rrlsam.prediction.predict import predict_scan, predict_scans
from rrlsam.prediction.predicted import Ledger, Options, Report, require_safe_output
from rrlsam.scans.inputs import InputScan, find_inputs
from rrlsam.system.files import sha256
from rrlsam.system.own_results import REPLACED
from rrlsam.system.progress import silent


class Folder:
    """Two scans, a model's file and an output folder; counts what is predicted."""

    def __init__(self, folder: Path, phantoms, model, monkeypatch) -> None:
        self.folder, self.model = folder, model
        self.phantoms = phantoms
        self.done: list[str] = []
        self.output = folder / "out"
        self.checkpoint = folder / "checkpoint_final.pt"
        self.checkpoint.write_text("some weights")
        for seed, case in enumerate("ab"):
            self.write(case, seed)
        monkeypatch.setattr("rrlsam.prediction.predict.predict_scan", self._count)

    def write(self, case: str, seed: int) -> None:
        self.phantoms.write_volume(self.phantoms.phantom(seed)[0][0], self.folder / "in" / f"{case}_0000.nii.gz")

    def predict(self, *, resume: bool = True, **options) -> list[str]:
        """The cases that were really predicted."""
        self.done.clear()
        chosen = Options(**options)
        ledger = Ledger(self.output, [self.checkpoint], chosen, resume=resume)
        scans = find_inputs(self.folder / "in", 1)
        self.report: Report = predict_scans(scans, [self.model], self.output, chosen, silent, ledger)
        return list(self.done)

    def _count(self, scan, models, output, options):
        self.done.append(scan.case)
        return predict_scan(scan, models, output, options)


@pytest.fixture
def folder(tmp_path, phantoms, threshold_model, monkeypatch) -> Folder:
    """Predicted once."""
    folder = Folder(tmp_path, phantoms, threshold_model(), monkeypatch)
    assert folder.predict() == ["a", "b"]
    return folder


def test_what_fits_is_kept_and_reported_as_before(folder):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.output.glob("*.nii.gz")}
    report, rows = folder.report, (folder.output / "confidence.csv").read_bytes()
    assert folder.predict() == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert folder.report == report
    assert (folder.output / "confidence.csv").read_bytes() == rows


def test_without_being_asked_to_continue_all_are_predicted(folder):
    assert folder.predict(resume=False) == ["a", "b"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda mask: mask.write_bytes(mask.read_bytes()[:-20]),
        lambda mask: mask.write_bytes(b""),
        lambda mask: mask.unlink(),
        lambda mask: (mask.parent / ".rrlsam" / "a.json").unlink(),
        lambda mask: (mask.parent / ".rrlsam" / "a.json").write_text("{}"),
    ],
    ids=["cut", "empty", "gone", "without a record", "with a broken record"],
)
def test_a_partial_or_foreign_mask_is_made_again(folder, spoil):
    mask = folder.output / "a.nii.gz"
    whole = sha256(mask)
    spoil(mask)
    assert folder.predict() == ["a"]
    assert sha256(mask) == whole


@pytest.mark.parametrize("resume", [True, False])
def test_a_mask_that_was_corrected_by_hand_is_kept_aside(folder, caplog, resume):
    (folder.output / "a.nii.gz").write_bytes(b"corrected")
    assert "a" in folder.predict(resume=resume)
    assert [path.name for path in (folder.output / REPLACED).iterdir()] == ["a.nii.gz"]
    assert (folder.output / REPLACED / "a.nii.gz").read_bytes() == b"corrected"
    assert caplog.text.count("a.nii.gz") == 1


def test_a_corrected_mask_stays_where_it_is_if_no_other_can_be_made(folder):
    (folder.output / "a.nii.gz").write_bytes(b"corrected")
    (folder.folder / "in" / "a_0000.nii.gz").write_bytes(b"")
    folder.predict()
    assert set(folder.report.failures) == {"a"}
    assert (folder.output / "a.nii.gz").read_bytes() == b"corrected"


def test_predictions_of_ours_are_replaced_without_a_word(folder, caplog):
    """Whatever was written beside them in between."""
    for options in ({"save_probabilities": True}, {"average": False}, {"save_probabilities": True}):
        folder.predict(resume=False, **options)
    assert not (folder.output / REPLACED).exists()
    assert caplog.text == ""


def test_files_of_somebody_else_in_the_output_folder_are_kept_aside(tmp_path, phantoms, threshold_model, monkeypatch):
    folder = Folder(tmp_path, phantoms, threshold_model(), monkeypatch)
    mine = ("a.nii.gz", "confidence.csv", "report.json", "notes.txt")
    folder.output.mkdir()
    for name in mine:
        (folder.output / name).write_text(f"my {name}")
    folder.predict()
    replaced = folder.output / REPLACED
    assert {path.name: path.read_text() for path in replaced.iterdir()} == {name: f"my {name}" for name in mine[:3]}
    assert (folder.output / "notes.txt").read_text() == "my notes.txt"


def test_a_changed_scan_is_predicted_again(folder):
    folder.write("b", 7)
    assert folder.predict() == ["b"]


def test_another_model_predicts_all_again(folder):
    folder.checkpoint.write_text("other weights")
    assert folder.predict() == ["a", "b"]


@pytest.mark.parametrize("options", [{"overlap": 0.25}, {"average": False}, {"save_probabilities": True}])
def test_other_settings_predict_all_again(folder, options):
    assert folder.predict(**options) == ["a", "b"]


def test_every_file_of_a_prediction_must_fit(folder):
    folder.predict(save_probabilities=True, save_registration=True)
    (folder.output / "registration" / "a.nii.gz").write_bytes(b"something else")
    (folder.output / "b.npz").unlink()
    assert folder.predict(save_probabilities=True, save_registration=True) == ["a", "b"]


def test_what_a_killed_prediction_left_half_written_is_removed(folder):
    """Of its own files alone: somebody else may be writing other cases."""
    own, other = (folder.output / ".rrlsam" / f"new-{case}" for case in "ax")
    for case in (own, other):
        case.mkdir(parents=True)
        (case / "half.nii.gz").touch()
    (folder.output / "a.nii.gz").unlink()
    folder.predict()
    assert not own.exists()
    assert other.exists()
    assert not (folder.output / "half.nii.gz").exists()


def test_a_scan_that_has_gone_bad_is_not_kept(folder):
    (folder.folder / "in" / "a_0000.nii.gz").write_bytes(b"")
    assert folder.predict() == ["a"]
    assert set(folder.report.failures) == {"a"}


def test_a_record_tells_what_a_mask_was_made_of(folder):
    record = json.loads((folder.output / ".rrlsam" / "a.json").read_text())
    assert record["inputs"] == sha256(folder.folder / "in" / "a_0000.nii.gz")
    assert record["models"] == sha256(folder.checkpoint)
    assert record["outputs"] == {"a.nii.gz": sha256(folder.output / "a.nii.gz")}


def test_no_scan_is_replaced_by_its_mask(tmp_path):
    scan = InputScan(case="a", images=(tmp_path / "a.nii.gz",), ending=".nii.gz")
    with pytest.raises(UsageError, match=r"a\.nii\.gz would replace a scan"):
        require_safe_output([scan], tmp_path, Options())
    os.symlink(tmp_path, tmp_path / "link")
    with pytest.raises(UsageError, match="would replace a scan"):
        require_safe_output([scan], tmp_path / "link", Options())


@pytest.mark.parametrize("place", ["", "labelsTr", "labelsTs", "imagesTs"])
def test_nothing_is_predicted_into_a_raw_data_set(tmp_path, make_dataset, place):
    raw = make_dataset(tmp_path / "Dataset001_X", 1, 1)
    scans = find_inputs(raw / "imagesUn", 1)
    with pytest.raises(UsageError, match="belongs to a raw data set"):
        require_safe_output(scans, raw / place, Options())
    require_safe_output(scans, raw / "predictions", Options())
