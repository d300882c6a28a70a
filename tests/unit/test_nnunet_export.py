"""Predicted masks as a raw data set: what is in it, what is left out, and what is refused."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import SimpleITK as sitk

from rrlsam.cli import export_nnunet_dataset as command
from rrlsam.errors import BadInputError, UsageError
from rrlsam.models.checkpoint import save_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.prediction.nnunet_export import PROVENANCE, export_dataset, find_atlases, read_confidences
from rrlsam.prediction.predicted import Report, ScanReport
from rrlsam.scans.dataset import load_dataset
from rrlsam.scans.integrity import check_dataset
from rrlsam.settings import FINAL
from rrlsam.system.jsonio import save_json

CONFIDENCES = {"lab_01": 0.9, "lab_02": 0.8, "un_00": 0.7, "un_01": 0.3}


@pytest.fixture
def predictions(tiny, phantoms, tmp_path: Path) -> Path:
    """Masks of four scans and of the atlas, with confidences; they differ from the true labels."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for seed, case in enumerate(("lab_00", *CONFIDENCES)):
        phantoms.write_volume(phantoms.phantom(seed + 50)[1], folder / f"{case}.nii.gz")
    save_json(report_of(CONFIDENCES), folder / "report.json")
    return folder


def report_of(confidences: Mapping[str, float]) -> Report:
    scans = tuple(
        ScanReport(
            case=case,
            failure=None,
            alignment="affine",
            fold_percent=0.0,
            predicted_dice=dice,
            look_at=(),
            seconds=1.0,
        )
        for case, dice in confidences.items()
    )
    return Report(scans=scans)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_new_data_set_is_sound_and_holds_every_predicted_scan(tiny, predictions, tmp_path):
    folder = export_dataset(tiny, predictions, tmp_path / "out", 7, ("lab_00",)).folder
    assert folder == tmp_path / "out" / "Dataset007_TinyPseudo"
    made = load_dataset(folder)
    assert made.labelled == ("lab_00", "lab_01", "lab_02", "un_00", "un_01")
    assert (made.labels, made.channel_names, made.num_training) == (tiny.labels, tiny.channel_names, 5)
    assert [finding for finding in check_dataset(made) if finding.severity == "error"] == []


def test_the_atlas_keeps_its_true_label_and_the_others_get_their_masks(tiny, predictions, tmp_path):
    folder = export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",)).folder
    true = tiny.scan("lab_00").label.read_bytes()
    assert (folder / "labelsTr" / "lab_00.nii.gz").read_bytes() == true
    for case in CONFIDENCES:
        mask = (folder / "labelsTr" / f"{case}.nii.gz").read_bytes()
        assert mask == (predictions / f"{case}.nii.gz").read_bytes()
        assert (folder / "imagesTr" / f"{case}_0000.nii.gz").read_bytes() == tiny.scan(case).images[0].read_bytes()


def test_scans_of_low_confidence_are_left_out_and_listed(tiny, predictions, tmp_path):
    written = export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",), least_confidence=0.75)
    assert load_dataset(written.folder).labelled == ("lab_00", "lab_01", "lab_02")
    told = json.loads((written.folder / PROVENANCE).read_text())
    assert told["left_out"] == {"un_00": pytest.approx(0.7), "un_01": pytest.approx(0.3)}


def test_the_provenance_tells_true_labels_from_predicted_ones(tiny, predictions, tmp_path):
    told = export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",)).provenance
    assert told.true_labels == ("lab_00",)
    assert told.pseudo_labels == {case: pytest.approx(dice) for case, dice in CONFIDENCES.items()}
    assert told.source == "Dataset001_Tiny"


def test_confidences_of_several_parts_are_read(tiny, predictions, tmp_path):
    (predictions / "report.json").unlink()
    for part in range(2):
        some = dict(list(CONFIDENCES.items())[part::2])
        save_json(report_of(some), predictions / f"report_part_{part}_of_2.json")
    told = export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",), least_confidence=0.0).provenance
    assert set(told.pseudo_labels) == set(CONFIDENCES)


def test_the_newest_report_of_a_case_counts_and_no_other_files(tiny, predictions, tmp_path):
    old, new, other = (predictions / f"report{part}.json" for part in ("_part_0_of_2", "", "_mine"))
    for age, (path, dice) in enumerate({new: 0.9, old: 0.2, other: 0.1}.items()):
        save_json(report_of({"lab_01": dice}), path)
        os.utime(path, (1000 - age, 1000 - age))
    assert read_confidences(predictions) == {"lab_01": pytest.approx(0.9)}
    os.utime(old, (2000, 2000))
    assert read_confidences(predictions) == {"lab_01": pytest.approx(0.2)}


def test_scans_that_were_not_predicted_are_named(tiny, predictions, tmp_path):
    (predictions / "un_00.nii.gz").unlink()
    told = export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",)).provenance
    assert "un_00" in told.not_predicted
    assert not {"lab_00", *told.pseudo_labels} & set(told.not_predicted)


def test_a_number_that_is_taken_is_refused(tiny, predictions, workspace):
    before = files(workspace.root("raw"))
    with pytest.raises(UsageError, match="number 1 is taken by Dataset001_Tiny"):
        export_dataset(tiny, predictions, workspace.root("raw"), 1, ("lab_00",))
    assert files(workspace.root("raw")) == before


def test_a_filter_needs_confidences(tiny, predictions, tmp_path):
    (predictions / "report.json").unlink()
    with pytest.raises(BadInputError, match="lacks lab_01"):
        export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",), least_confidence=0.5)


def test_a_filter_that_leaves_nothing_is_refused(tiny, predictions, tmp_path):
    with pytest.raises(BadInputError, match="lower it"):
        export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",), least_confidence=0.99)


def test_a_mask_on_another_grid_leaves_no_data_set(tiny, predictions, phantoms, tmp_path):
    phantoms.write_volume(phantoms.phantom(3)[1], predictions / "un_01.nii.gz", origin=(5.0, 0.0, 0.0))
    with pytest.raises(BadInputError, match=r"un_01\.nii\.gz: its grid differs from that of un_01_0000.*origin"):
        export_dataset(tiny, predictions, tmp_path / "out", 7, ("lab_00",))
    assert files(tmp_path / "out") == []


def test_a_mask_of_undeclared_values_is_refused(tiny, predictions, phantoms, tmp_path):
    phantoms.write_volume(phantoms.phantom(3)[1] * 4, predictions / "un_01.nii.gz")
    with pytest.raises(BadInputError, match=r"not declared in dataset\.json: 4 \(\d+ voxels\), 8"):
        export_dataset(tiny, predictions, tmp_path / "out", 7, ("lab_00",))


def test_masks_of_other_scans_are_refused(tiny, predictions, tmp_path):
    shutil.copy(predictions / "un_00.nii.gz", predictions / "stranger.nii.gz")
    with pytest.raises(BadInputError, match=r"1 masks are of no scan.*stranger"):
        export_dataset(tiny, predictions, tmp_path / "out", 7, ("lab_00",))


def test_the_true_labels_of_other_cases_are_not_read(tiny, predictions, tmp_path):
    for case in tiny.labelled[1:]:
        tiny.scan(case).label.write_bytes(b"nobody may read this")
    assert export_dataset(tiny, predictions, tmp_path, 7, ("lab_00",)).folder.is_dir()


def test_the_atlas_is_asked_for_where_it_is_not_known(tiny, workspace):
    with pytest.raises(UsageError, match="--atlas"):
        find_atlases(tiny, workspace.root("results"))


@pytest.fixture
def learn_from(make_run, workspace) -> Callable[..., None]:
    """A finished fold of the tiny data set whose training saw the labels of some cases."""

    def make(fold: str, *cases: str) -> None:
        checkpoint = make_run().checkpoint()
        seen = dataclasses.replace(checkpoint.provenance, labelled_cases=cases)
        model = model_folder(workspace.results("Dataset001_Tiny"), "default", "rrlsamPlans")
        save_checkpoint(dataclasses.replace(checkpoint, provenance=seen), fold_folder(model, fold) / FINAL)

    return make


def test_every_label_that_was_learnt_from_is_true(tiny, workspace, learn_from):
    learn_from("0", "lab_02", "lab_00")
    learn_from("1", "lab_00", "lab_02")
    assert find_atlases(tiny, workspace.root("results")) == ("lab_00", "lab_02")


def test_folds_that_learnt_from_different_labels_are_told_and_the_labels_asked_for(tiny, workspace, learn_from):
    learn_from("0", "lab_00")
    learn_from("1", "lab_00", "lab_02")
    with pytest.raises(UsageError, match=r"learnt from the labels of lab_00 or lab_00,lab_02; .*--atlas"):
        find_atlases(tiny, workspace.root("results"))


def test_the_only_labelled_case_is_the_atlas(workspace, make_dataset):
    alone = load_dataset(make_dataset(workspace.root("raw") / "Dataset002_One", n_labelled=1))
    assert find_atlases(alone, None) == ("lab_00",)


def test_the_command_writes_a_data_set(tiny, predictions, workspace, projects, tmp_path):
    fixed = ["-d", "1", "-i", str(predictions), "-o", str(tmp_path / "out"), "--raw", str(workspace.root("raw"))]
    answer = projects.run(command.main, [*fixed, "--id", "7", "--atlas", "lab_00", "--least_confidence", "0.5"])
    assert answer.code == 0, answer.err
    assert "1 true and 3 predicted labels" in answer.out
    assert "fold all" in answer.out
    mask = sitk.ReadImage(str(tmp_path / "out" / "Dataset007_TinyPseudo" / "labelsTr" / "un_00.nii.gz"))
    assert mask.GetSize() == (22, 24, 20)
