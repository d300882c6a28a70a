import contextlib
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli.evaluate import main
from rrlsam.errors import BadInputError, ResourceError, UsageError
from rrlsam.evaluation.evaluate import evaluate_folder, labels_from_file, labels_from_ints
from rrlsam.evaluation.summary import Evaluation, summary, table, write_csv, write_summary
from rrlsam.labels import LabelScheme, parse_labels

SPACING_XYZ = (1.0, 1.0, 2.0)
NNUNET_KEYS = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}


def block(value: int, start: int = 2, stop: int = 6) -> np.ndarray:
    array = np.zeros((8, 10, 12), dtype=np.uint8)
    array[2:6, 2:6, start:stop] = value
    return array


def save(array: np.ndarray, path: Path, spacing: tuple[float, float, float] = SPACING_XYZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Label 1 is perfect in A and shifted by half in B; label 2 is missed in A and absent in B."""
    reference, prediction = tmp_path / "labelsTr", tmp_path / "predicted"
    truth = block(1)
    truth[2:6, 7:9, 2:6] = 2
    save(truth, reference / "A.nii.gz")
    save(block(1), prediction / "A.nrrd")
    save(block(1), reference / "B.nii.gz")
    save(block(1, 4, 8), prediction / "B.nii.gz")
    return reference, prediction


def evaluate(folders: tuple[Path, Path], labels: LabelScheme | None = None) -> Evaluation:
    return evaluate_folder(*folders, labels or labels_from_ints([1, 2]), workers=2)


def test_a_forgiven_label_is_measured_in_the_millimetres_of_the_scan(tmp_path: Path):
    """A label that was saved without its header, in voxels of 1 mm."""
    save(block(1), tmp_path / "a" / "A.nii.gz", (1.0, 1.0, 1.0))
    save(block(1, 3, 7), tmp_path / "b" / "A.nii.gz", (0.5, 0.5, 3.0))
    with pytest.raises(BadInputError, match="its grid differs"):
        evaluate_folder(tmp_path / "a", tmp_path / "b", labels_from_ints([1]), workers=1)
    found = evaluate_folder(
        tmp_path / "a", tmp_path / "b", labels_from_ints([1]), workers=1, allow_geometry_mismatch=True
    )
    shifted = found.cases[0].structures[0]
    assert np.isclose(shifted.HD95, 0.5)
    assert shifted.volume_ref_mm3 == pytest.approx(64 * 0.75)


def test_cases_are_compared_by_name_whatever_their_ending(folders: tuple[Path, Path]):
    done = []

    @contextlib.contextmanager
    def progress(description: str, total: int):
        yield lambda: done.append((description, total))

    evaluation = evaluate_folder(*folders, labels_from_ints([1, 2]), workers=2, progress=progress)
    assert [case.case for case in evaluation.cases] == ["A", "B"]
    assert done == [("Evaluating", 2), ("Evaluating", 2)]
    assert evaluation.column(0, "Dice").tolist() == [1, 0.5]
    shifted = evaluation.cases[1].structures[0]
    assert (shifted.TP, shifted.FP, shifted.FN, shifted.n_pred, shifted.n_ref) == (32, 32, 32, 64, 64)
    assert shifted.HD95 == 2
    assert shifted.volume_ref_mm3 == 128
    missed, absent = (case.structures[1] for case in evaluation.cases)
    assert (missed.Dice, missed.HD95, missed.NSD) == (0, math.inf, 0)
    assert math.isnan(absent.Dice)
    assert math.isnan(absent.HD95)


def test_summary_has_nnunet_keys_and_relative_names(folders: tuple[Path, Path]):
    path = folders[1] / "summary.json"
    write_summary(evaluate(folders), path)
    content = json.loads(path.read_text())
    assert {"metric_per_case", "mean", "foreground_mean", "definitions"} == content.keys()
    first = content["metric_per_case"][0]
    assert first["prediction_file"] == "A.nrrd"
    assert first["reference_file"] == "../labelsTr/A.nii.gz"
    assert first["metrics"].keys() == content["mean"].keys() == {"1", "2"}
    for entry in (first["metrics"]["1"], content["mean"]["1"], content["foreground_mean"]):
        assert entry.keys() >= NNUNET_KEYS | {"HD95", "NSD", "volume_pred_mm3", "volume_ref_mm3"}
    assert content["mean"]["1"]["Dice"] == 0.75
    assert content["mean"]["2"]["Dice"] == 0
    assert content["foreground_mean"]["Dice"] == 0.375
    assert content["foreground_mean"]["FN"] == (16 + 16) / 2
    assert first["metrics"]["2"]["HD95"] is None
    assert "NaN" in path.read_text()
    assert content["mean"]["1"]["HD95_infinite"] == 0
    assert content["mean"]["1"]["HD95"] == 1
    assert content["foreground_mean"]["HD95_infinite"] == 1


def test_the_foreground_mean_of_a_structure_that_is_nowhere_is_nnunets_nan(folders: tuple[Path, Path]):
    content = summary(evaluate(folders, labels_from_ints([1, 5])))
    mean = content["foreground_mean"]
    assert isinstance(mean, dict)
    assert math.isnan(mean["Dice"])
    assert mean["HD95"] == 1


def test_regions_are_unions_in_both_files(tmp_path: Path):
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], source="test")
    truth, guess = block(1), block(1)
    truth[3:5, 3:5, 3:5] = 2
    save(truth, tmp_path / "a" / "A.nii.gz")
    save(guess, tmp_path / "b" / "A.nii.gz")
    evaluation = evaluate((tmp_path / "a", tmp_path / "b"), labels)
    assert [r.Dice for r in evaluation.cases[0].structures] == [1, 0]
    means = summary(evaluation)["mean"]
    assert isinstance(means, dict)
    assert list(means) == ["(1, 2)", "2"]


def test_ignored_voxels_of_the_reference_count_for_nothing(tmp_path: Path):
    labels = parse_labels({"background": 0, "organ": 1, "ignore": 2}, None, source="test")
    truth = block(1)
    truth[:, :, 6:] = 2
    save(truth, tmp_path / "a" / "A.nii.gz")
    save(block(1, 2, 10), tmp_path / "b" / "A.nii.gz")
    result = evaluate((tmp_path / "a", tmp_path / "b"), labels).cases[0].structures[0]
    assert (result.Dice, result.HD95, result.NSD, result.FP) == (1, 0, 1, 0)
    assert result.TN == 8 * 10 * 6 - 64


def test_a_missing_prediction_is_named_or_skipped(folders: tuple[Path, Path]):
    (folders[1] / "B.nii.gz").rename(folders[1] / "C.nii.gz")
    with pytest.raises(BadInputError, match="no prediction for B;"):
        evaluate(folders)
    evaluation = evaluate_folder(*folders, labels_from_ints([1]), workers=1, allow_missing=True)
    assert [case.case for case in evaluation.cases] == ["A"]
    assert evaluation.without_prediction == ("B",)
    assert evaluation.without_reference == ("C",)


def test_folders_without_a_common_case_are_refused(tmp_path: Path):
    save(block(1), tmp_path / "a" / "A.nii.gz")
    (tmp_path / "b").mkdir()
    with pytest.raises(BadInputError, match="nothing to compare"):
        evaluate_folder(tmp_path / "a", tmp_path / "b", labels_from_ints([1]), workers=1, allow_missing=True)
    with pytest.raises(BadInputError, match="no such folder"):
        evaluate((tmp_path / "a", tmp_path / "c"))


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path]):
    save(block(1), folders[1] / "A.mha")
    with pytest.raises(BadInputError, match=r"A\.mha and A\.nrrd have one name"):
        evaluate(folders)


def test_another_grid_is_refused(folders: tuple[Path, Path]):
    save(block(1), folders[1] / "B.nii.gz", spacing=(1.0, 1.0, 1.0))
    with pytest.raises(BadInputError, match=r"B\.nii\.gz: its grid differs"):
        evaluate(folders)


def test_csv_has_a_row_a_case_and_structure(folders: tuple[Path, Path], tmp_path: Path):
    write_csv(evaluate(folders), tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, structure) for case in "AB" for structure in ("label 1", "label 2")
    ]
    assert (rows[0]["Dice"], rows[1]["HD95"], rows[3]["Dice"]) == ("1.0", "inf", "nan")


def test_table_sets_evaluations_side_by_side_and_warns(folders: tuple[Path, Path]):
    evaluation = evaluate(folders)
    lines = table({"registration": evaluation, "segmentation": evaluation}).splitlines()
    assert "registration Dice" in lines[0]
    assert "segmentation HD95 mm" in lines[0]
    assert lines[2].split()[:5] == ["label", "1", "0.750", "+-", "0.250"]
    assert "- (1 infinite)" in lines[3]
    assert lines[4].split()[:4] == ["mean", "0.375", "+-", "0.000"]
    assert lines[5] == "warning: registration: label 2 was not found in any case (Dice 0)"
    with pytest.raises(ValueError, match="same structures"):
        table({"a": evaluation, "b": evaluate(folders, labels_from_ints([1]))})


@pytest.mark.parametrize("values", [[], [0, 1], [2, 2]])
def test_labels_must_be_different_and_positive(values: list[int]):
    with pytest.raises(UsageError, match="different whole numbers"):
        labels_from_ints(values)


@pytest.mark.parametrize(("text", "reason"), [("{", "not valid JSON"), ("[]", "labels are missing")])
def test_a_bad_dataset_json_is_refused(tmp_path: Path, text: str, reason: str):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(BadInputError, match=reason):
        labels_from_file(tmp_path / "dataset.json")
    with pytest.raises(BadInputError, match="no such file"):
        labels_from_file(tmp_path / "other.json")


def test_command_writes_summary_and_csv(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    reference, prediction = map(str, folders)
    assert main([reference, prediction, "-l", "1", "2"]) == 0
    assert "label 1" in capsys.readouterr().out
    assert {path.name for path in folders[1].iterdir()} >= {"summary.json", "summary.csv"}


def test_command_replaces_its_own_reports_only(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    arguments = [*map(str, folders), "-l", "1", "2"]
    summary, rows = (folders[1] / f"summary.{ending}" for ending in ("json", "csv"))
    assert main(arguments) == main(arguments) == 0
    ours = summary.read_text(), rows.read_text()
    summary.write_text(json.dumps({"foreground_mean": {}, "mean": {}, "metric_per_case": []}))  # as nnU-Net's
    assert main(arguments) == UsageError.exit_code
    assert "summary.json: is there and of something else" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    rows.write_text("my,table\n")
    assert main(arguments) == UsageError.exit_code
    assert "summary.csv: is there and of something else" in capsys.readouterr().err
    assert (summary.read_text(), rows.read_text()) == (ours[0], "my,table\n")


@pytest.mark.parametrize("option", ["-o=/proc/rrlsam/s.json", "--csv=/proc/rrlsam/s.csv"])
def test_command_finds_out_before_the_work_that_it_cannot_write(
    folders: tuple[Path, Path],
    option: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("rrlsam.evaluation.evaluate.evaluate_folder", lambda *given, **named: pytest.fail("too late"))
    assert main([*map(str, folders), "-l", "1", "2", option]) == ResourceError.exit_code
    assert "/proc/rrlsam: cannot be written" in capsys.readouterr().err


def test_command_makes_no_folder_of_predictions(folders: tuple[Path, Path], tmp_path: Path):
    assert main([str(folders[0]), str(tmp_path / "none"), "-l", "1"]) == BadInputError.exit_code
    assert not (tmp_path / "none").exists()


def test_command_does_not_replace_the_labels_that_it_reads(folders: tuple[Path, Path], tmp_path: Path):
    labels = tmp_path / "mylabels.json"
    labels.write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    before = labels.read_text()
    assert main([*map(str, folders), "-djfile", str(labels), "-o", str(labels), "--overwrite"]) == UsageError.exit_code
    assert labels.read_text() == before


def test_command_finds_dataset_json(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    reference, prediction = map(str, folders)
    assert main([reference, prediction]) == UsageError.exit_code
    assert "-djfile" in capsys.readouterr().err
    content = json.dumps({"labels": {"background": 0, "organ": 1}})
    raw = tmp_path / "raw" / "Dataset007_Organ"
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text(content)
    monkeypatch.setenv("rrlsam_raw", str(tmp_path / "raw"))
    for choice in (["-d", "7"], ["-d", str(raw)], ["-djfile", str(raw / "dataset.json")]):
        assert main([reference, prediction, *choice, "-o", str(tmp_path / "out" / "s.json")]) == 0
        assert "organ" in capsys.readouterr().out
    (folders[0].parent / "dataset.json").write_text(content)
    assert main([reference, prediction, "-np", "1", "--disable_progress_bar"]) == 0
    assert "organ" in capsys.readouterr().out


def test_command_reports_skipped_cases(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    (folders[1] / "B.nii.gz").rename(folders[1] / "C.nii.gz")
    arguments = [*map(str, folders), "-l", "1"]
    assert main(arguments) == BadInputError.exit_code
    assert main([*arguments, "--chill"]) == 0
    printed = capsys.readouterr()
    assert "skipped, no prediction: B" in printed.out
    assert "skipped, no reference: C" in printed.out
