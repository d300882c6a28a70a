"""The commands as a user runs them, on phantoms and with networks in miniature."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli import info
from rrlsam.geometry import geometry_of
from rrlsam.models.checkpoint import PREVIOUS, load_checkpoint, save_checkpoint
from rrlsam.scans.volume import same_grid
from rrlsam.settings import FINAL, LATEST

CASES = ("test_00", "test_01")


def masks(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.nii.gz"))


def array_of(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_planning_with_the_default_planner_writes_a_plan(make_project):
    project = make_project(n_labelled=2, n_unlabelled=0)
    answer = project.plan(planner="default")
    assert answer.code == 0
    (path,) = project.prepared.glob("rrlsamPlans/atlas_*/plan.json")
    assert json.loads(path.read_text())["planner"] == "default"
    assert str(path) in answer.out


def test_training_leaves_a_model_and_what_is_known_of_it(trained):
    fold = trained.model / "fold_0"
    names = {path.name for path in fold.iterdir()}
    expected = {"checkpoint_final.pt", "checkpoint_latest.pt", "metrics.jsonl", "plan.json", "progress.png"}
    assert expected | {"training_log.txt", "validation"} <= names


def test_training_reports_its_validation(trained):
    validation = trained.model / "fold_0" / "validation"
    assert len(masks(validation)) == 1
    for folder in (validation, validation / "registration"):
        summary = json.loads((folder / "summary.json").read_text())
        assert 0 <= summary["foreground_mean"]["Dice"] <= 1


def test_every_stage_was_trained_as_long_as_asked_for(trained):
    stages = [record["stage"] for record in trained.metrics("0")]
    assert stages == [stage for stage in dict.fromkeys(stages) for _ in range(3)]
    assert set(stages) >= {"joint_reg_seg", "mutual_learning_1"}


def test_a_folder_is_predicted_by_all_trained_folds(trained, tmp_path):
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path)
    assert answer.code == 0
    assert "fold 0, 1" in answer.out
    assert masks(tmp_path) == [f"{case}.nii.gz" for case in CASES]
    for case in CASES:
        mask = sitk.ReadImage(str(tmp_path / f"{case}.nii.gz"))
        scan = sitk.ReadImage(str(trained.dataset / "imagesTs" / f"{case}_0000.nii.gz"))
        assert same_grid(geometry_of(mask), geometry_of(scan))


def test_a_single_file_is_predicted(trained, tmp_path):
    source = trained.dataset / "imagesTs" / "test_01_0000.nii.gz"
    assert trained.predict(source, tmp_path, "-f", "0").code == 0
    assert masks(tmp_path) == ["test_01.nii.gz"]


def test_probabilities_of_several_folds_are_averaged(trained, tmp_path):
    source = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
    stored = {}
    for folds in ("0", "1", "0 1"):
        output = tmp_path / folds
        plain = ("--save_probabilities", "--disable_evidence")
        assert trained.predict(source, output, *plain, "-f", *folds.split()).code == 0
        stored[folds] = np.load(output / "test_00.npz")["probabilities"]
    assert stored["0 1"].shape == (3, 20, 24, 22)
    assert not np.allclose(stored["0"], stored["1"], atol=1e-3)
    np.testing.assert_allclose(stored["0 1"], (stored["0"] + stored["1"]) / 2, atol=1e-5)


def test_the_mask_is_the_most_probable_class(trained, tmp_path):
    source = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
    assert trained.predict(source, tmp_path, "--save_probabilities", "-f", "0").code == 0
    probabilities = np.load(tmp_path / "test_00.npz")["probabilities"]
    assert np.array_equal(array_of(tmp_path / "test_00.nii.gz"), probabilities.argmax(0))


def test_the_registration_is_written_and_scored(trained, tmp_path):
    assert trained.predict(trained.dataset / "imagesTs", tmp_path, "--save_registration", "-f", "0").code == 0
    answer = trained.evaluate(trained.dataset / "labelsTs", tmp_path / "registration", "-l", "1", "2")
    assert answer.code == 0
    assert json.loads((tmp_path / "registration" / "summary.json").read_text())["foreground_mean"]["Dice"] > 0.6


def test_predictions_are_evaluated_by_the_labels_beside_them(trained, tmp_path):
    trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "0")
    answer = trained.evaluate(trained.dataset / "labelsTs", tmp_path)
    assert answer.code == 0
    assert "shell" in answer.out
    assert "2 cases" in answer.out


def test_predictions_come_with_what_they_are_worth(trained, tmp_path):
    trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "0")
    with (tmp_path / "confidence.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"]) for row in rows] == [(c, s) for c in CASES for s in ("shell", "core")]
    assert all(0.3 < float(row["predicted_dice"]) <= 1 for row in rows)
    report = json.loads((tmp_path / "report.json").read_text())
    for scan in report["scans"]:
        own = [float(row["predicted_dice"]) for row in rows if row["case"] == scan["case"]]
        assert scan["predicted_dice"] == pytest.approx(sum(own) / len(own), abs=1e-3)


def test_predicting_twice_gives_the_same(trained, tmp_path):
    for name in ("a", "b"):
        trained.predict(trained.dataset / "imagesTs", tmp_path / name, "--save_probabilities")
    for case in CASES:
        first, second = (np.load(tmp_path / name / f"{case}.npz")["probabilities"] for name in ("a", "b"))
        assert np.array_equal(first, second)


def test_a_bad_scan_is_told_by_the_exit_code_and_stops_no_other(trained, tmp_path):
    shutil.copytree(trained.dataset / "imagesTs", tmp_path / "in")
    (tmp_path / "in" / "test_00_0000.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    answer = trained.predict(tmp_path / "in", tmp_path / "out", "-f", "0")
    assert answer.code == 6
    assert "1 of 2 scans failed: " in answer.err
    assert masks(tmp_path / "out") == ["test_01.nii.gz"]


def test_a_fold_that_is_not_trained_is_refused(trained, tmp_path):
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "3")
    assert answer.code == 2
    assert "fold 3 is not trained; finished folds: 0, 1" in answer.err


def test_folds_of_other_labels_are_not_averaged(trained, tmp_path):
    model = tmp_path / trained.model.name
    shutil.copytree(trained.model, model)
    fold = load_checkpoint(model / "fold_1" / FINAL)
    labels = dataclasses.replace(fold.plan.labels, structures=fold.plan.labels.structures[::-1])
    other = dataclasses.replace(fold, plan=dataclasses.replace(fold.plan, labels=labels))
    save_checkpoint(other, model / "fold_1" / FINAL)
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path / "out", "-m", str(model))
    assert answer.code == 3
    assert "fold 1 differs from fold 0 in its plan's labels; predict them apart with -f" in answer.err
    assert masks(tmp_path / "out") == []


def test_a_scan_without_a_channel_is_refused(rich, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(rich.dataset / "imagesTs" / "test_00_0000.nii.gz", tmp_path / "in")
    answer = rich.predict(tmp_path / "in", tmp_path / "out")
    assert answer.code == 6
    assert "test_00_0001.nii.gz" in answer.err


def test_regions_ignore_label_and_channels_go_through_training(rich):
    summary = json.loads((rich.model / "fold_0" / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "2"}


def test_regions_are_predicted_as_values_and_as_probabilities(rich, tmp_path):
    assert rich.predict(rich.dataset / "imagesTs", tmp_path, "--save_probabilities").code == 0
    probabilities = np.load(tmp_path / "test_00.npz")["probabilities"]
    assert probabilities.shape == (2, 20, 24, 22)
    expected = np.where(probabilities[1] > 0.5, 2, np.where(probabilities[0] > 0.5, 1, 0))
    assert np.array_equal(array_of(tmp_path / "test_00.nii.gz"), expected)


def test_no_voxel_is_predicted_to_be_ignored(rich, tmp_path):
    rich.predict(rich.dataset / "imagesTs", tmp_path, "--save_registration")
    for folder in (tmp_path, tmp_path / "registration"):
        assert set(np.unique(array_of(folder / "test_00.nii.gz"))) <= {0, 1, 2}


def test_predicted_regions_are_evaluated(rich, tmp_path):
    rich.predict(rich.dataset / "imagesTs", tmp_path)
    answer = rich.evaluate(rich.dataset / "labelsTs", tmp_path)
    assert answer.code == 0
    assert "whole" in answer.out


def test_with_one_label_there_is_no_validation_score(make_project):
    project = make_project(n_labelled=1, n_unlabelled=2)
    assert project.plan().code == 0
    answer = project.train("0", iterations=1)
    assert answer.code == 0
    assert "there is no validation score" in answer.out
    assert not (project.model / "fold_0" / "validation").exists()


def test_a_fold_beyond_the_split_is_refused(trained):
    answer = trained.train("7")
    assert answer.code == 2
    assert "fold 7: the split has the folds 0 to 4, or all" in answer.err


def test_a_refused_fold_leaves_nothing_behind(trained):
    trained.train("7")
    assert not (trained.model / "fold_7").exists()


def test_without_sam_and_network_all_ways_on_are_named(trained, tmp_path, monkeypatch):
    """Whoever runs tests has the network switched off: see conftest.py."""
    monkeypatch.setenv("rrlsam_cache", str(tmp_path))
    monkeypatch.setattr("rrlsam.teacher.sam_download.time.sleep", lambda seconds: None)
    answer = trained.train("2", sam=None)
    assert answer.code == 4
    for way in ("rrlsam_download_sam vit_b --from FILE", "--sam FILE", "--sam none"):
        assert way in answer.err


def test_results_are_not_overwritten_unasked(trained):
    before = (trained.model / "fold_0" / "checkpoint_final.pt").read_bytes()
    answer = trained.train("0")
    assert answer.code == 2
    assert "--overwrite" in answer.err
    assert "--c" in answer.err
    assert (trained.model / "fold_0" / "checkpoint_final.pt").read_bytes() == before


def test_a_training_is_either_continued_or_begun_anew(trained):
    before = (trained.model / "fold_0" / "checkpoint_final.pt").read_bytes()
    answer = trained.train("0", "--c", "--overwrite")
    assert answer.code == 2
    assert "give one of them" in answer.err
    assert (trained.model / "fold_0" / "checkpoint_final.pt").read_bytes() == before


def test_a_finished_model_that_cannot_be_continued_is_not_overwritten_unasked(trained, tmp_path):
    fold = tmp_path / trained.model.relative_to(trained.folder / "results") / "fold_0"
    shutil.copytree(trained.model / "fold_0", fold)
    for name in (LATEST, PREVIOUS):
        (fold / name).unlink()
    before = (fold / FINAL).read_bytes()
    answer = trained.train("0", "--c", "--results", str(tmp_path))
    assert answer.code == 2
    assert f"holds results, but no {LATEST} to continue; give --overwrite to lose them" in answer.err
    assert (fold / FINAL).read_bytes() == before


def test_results_are_overwritten_when_asked_for(make_project):
    project = make_project(n_labelled=1, n_unlabelled=1)
    project.plan()
    assert project.train("0", iterations=1).code == 0
    once = len(project.metrics("0"))
    assert project.train("0", "--overwrite", iterations=2).code == 0
    assert len(project.metrics("0")) == 2 * once > 0


def test_results_are_kept_until_those_that_replace_them_have_begun(make_project, tmp_path):
    project = make_project(n_labelled=1, n_unlabelled=1)
    project.plan()
    assert project.train("0", iterations=1).code == 0
    before = {path.name: path.read_bytes() for path in (project.model / "fold_0").iterdir() if path.is_file()}
    weights = tmp_path / "sam.pth"
    weights.write_bytes(b"no weights")
    answer = project.train("0", "--overwrite", sam=str(weights))
    assert answer.code == 3
    assert {path.name: path.read_bytes() for path in (project.model / "fold_0").iterdir() if path.is_file()} == before


def test_training_plans_by_itself(make_project):
    project = make_project(n_labelled=2, n_unlabelled=0)
    assert project.train("0", "--ablate", "no_general_branch", iterations=1).code == 0
    assert len(list(project.prepared.glob("rrlsamPlans/atlas_*/plan.json"))) == 1


def test_another_seed_gives_another_model(make_project):
    project = make_project(n_labelled=1, n_unlabelled=1)
    project.plan()
    losses = []
    for seed in ("0", "1", "0"):
        assert project.train("0", "--seed", seed, "--overwrite", iterations=1).code == 0
        losses.append([record["terms"] for record in project.metrics("0")])
    assert losses[0] == losses[2] != losses[1]


def test_the_atlas_can_be_chosen(make_project):
    project = make_project(n_labelled=5, n_unlabelled=0)
    assert project.plan("--atlas", "lab_03").code == 0
    answer = project.train("0", "--atlas", "lab_03", iterations=1)
    assert "atlas lab_03" in answer.out


@pytest.mark.parametrize("option", ["--iteration=3", "--overwrit"])
def test_an_unknown_option_brings_a_suggestion(trained, option):
    answer = trained.train("0", option)
    assert answer.code == 2
    assert "did you mean --" in answer.err


def test_two_dimensional_data_are_refused(make_project):
    project = make_project(n_labelled=2, n_unlabelled=0, size=(1, 24, 22))
    answer = project.plan()
    assert answer.code == 3
    assert "only 3-D volumes are supported" in answer.err


def test_a_missing_data_set_is_named(trained, projects):
    from rrlsam.cli import train

    arguments = ["99", "0", "--sam", "none", *trained.roots("raw", "preprocessed", "results")]
    answer = projects.run(train.main, arguments)
    assert answer.code == 2
    assert "99" in answer.err


def test_the_raw_folder_is_never_written_to_and_neighbours_stay(make_project):
    """nnU-Net's files lie in the same folders as ours."""
    project = make_project(n_labelled=2, n_unlabelled=0, n_test=1)
    name = project.dataset.name
    theirs = [
        project.folder / "preprocessed" / name / "nnUNetPlans.json",
        project.folder / "preprocessed" / name / "dataset_fingerprint.json",
        project.folder
        / "results"
        / name
        / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        / "fold_0"
        / "checkpoint_final.pth",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)

    def state() -> dict[str, tuple[bytes, int]]:
        files = [*theirs, *(path for path in project.dataset.rglob("*") if path.is_file())]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    assert project.plan().code == 0
    assert project.train("0", iterations=1).code == 0
    assert project.predict(project.dataset / "imagesTs", project.folder / "out").code == 0
    assert state() == before
    assert sorted(p.name for p in (project.folder / "preprocessed" / name).iterdir()) == [
        "dataset_fingerprint.json",
        "nnUNetPlans.json",
        "rrlsam",
    ]


def test_nnunets_split_is_followed(make_project):
    project = make_project(n_labelled=5, n_unlabelled=0)
    split = project.folder / "preprocessed" / project.dataset.name / "splits_final.json"
    split.parent.mkdir(parents=True)
    split.write_text(json.dumps([{"train": ["lab_02", "lab_03", "lab_04"], "val": ["lab_00", "lab_01"]}]))
    assert project.plan().code == 0
    assert project.train("0", iterations=1).code == 0
    assert masks(project.model / "fold_0" / "validation") == ["lab_00.nii.gz", "lab_01.nii.gz"]


def test_intensities_correct_probabilities_unless_told_otherwise(trained, tmp_path):
    found = {}
    for name, options in (("with", ()), ("without", ("--disable_evidence",))):
        quick = ("-f", "0", "--disable_tta", "--refine", "0", "--save_probabilities", *options)
        assert trained.predict(trained.dataset / "imagesTs", tmp_path / name, *quick).code == 0
        found[name] = [np.load(path)["probabilities"] for path in sorted((tmp_path / name).glob("*.npz"))]
    assert len(found["with"]) == len(found["without"]) == 2
    for corrected, plain in zip(found["with"], found["without"], strict=True):
        assert np.abs(corrected - plain).max() > 0.01
        np.testing.assert_allclose(corrected.sum(0), plain.sum(0), atol=1e-3)


@pytest.mark.parametrize("refine", [[], ["--refine", "2"], ["--segment", "--refine", "2"]])
def test_the_atlas_is_registered_to_a_folder_by_a_model(trained, tmp_path, refine):
    answer = trained.register("-i", trained.dataset / "imagesTs", "-o", tmp_path, "-f", "0", *refine)
    assert answer.code == 0, answer.err
    report = json.loads((tmp_path / "registration.json").read_text())
    assert len(report["registered"]) == 2
    assert report["method"].startswith("model default__rrlsamPlans")
    assert report["method"].endswith(", with segmentation") == ("--segment" in refine)
    for scan in report["registered"]:
        assert scan["jacobian"]["fold_percent"] == scan["inverse_jacobian"]["fold_percent"] == 0
        assert (tmp_path / f"{scan['fixed_name']}_WarpedLabels.nii.gz").exists()
    assert (tmp_path / "atlas.nii.gz").exists()
    assert (tmp_path / "atlas_labels.nii.gz").exists()


def test_a_registration_that_cannot_begin_writes_no_atlas(trained, tmp_path):
    scans = tmp_path / "scans"
    shutil.copytree(trained.dataset / "imagesTs", scans)
    first = sorted(scans.iterdir())[0]
    first.rename(scans / "atlas_0000.nii.gz")
    there = sorted(scans.iterdir())
    assert trained.register("-i", tmp_path / "none", "-o", scans, "-f", "0").code == 2
    for given, told in ((scans, "is the folder of the scans"), (scans / "atlas_0000.nii.gz", "would be replaced")):
        answer = trained.register("-i", given, "-o", scans, "-f", "0")
        assert (answer.code, told in answer.err) == (2, True)
    assert sorted(scans.iterdir()) == there


def test_options_of_a_model_need_one(trained, tmp_path):
    fixed, moving = sorted((trained.dataset / "imagesTs").iterdir())
    answer = trained.register("-fixed", fixed, "-moving", moving, "-o", tmp_path, "-f", "0")
    assert answer.code == 2
    assert "leave out -f: -moving alone uses no model" in answer.err


def test_options_that_a_named_model_makes_useless_are_refused(trained, tmp_path, projects):
    scans = trained.dataset / "imagesTs"
    answer = trained.predict(scans, tmp_path / "out", "-m", str(trained.model), "-d", "1")
    assert (answer.code, "leave out -d: -m names the model already" in answer.err) == (2, True)
    assert not (tmp_path / "out").exists()
    plan = next(trained.prepared.glob("*/atlas_*/plan.json"))
    answer = projects.run(info.main, ["--plan", str(plan), "-m", str(trained.model)])
    assert (answer.code, "leave out -m: --plan names a plan" in answer.err) == (2, True)


@pytest.mark.parametrize("too_much", [["-moving", "x.nii.gz"], ["--refine", "1"], ["--refine", "0"]])
def test_a_segmentation_helps_only_to_bring_the_atlas_and_to_refine(trained, tmp_path, too_much):
    answer = trained.register("-i", trained.dataset / "imagesTs", "-o", tmp_path, "-f", "0", "--segment", *too_much)
    assert answer.code == 2
    assert "--segment is for a model's own atlas" in answer.err
    assert not list(tmp_path.iterdir())


def test_no_segmentation_helps_where_parts_of_the_atlas_are_not_labelled(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("rrlsam.prediction.inference.Model.segmentation_can_help", False)
    answer = trained.register("-i", trained.dataset / "imagesTs", "-o", tmp_path, "-f", "0", "--segment")
    assert answer.code == 2
    assert "no ignored voxels" in answer.err


def test_a_model_registers_any_two_scans_of_its_kind(trained, tmp_path):
    fixed, moving = sorted((trained.dataset / "imagesTs").iterdir())
    answer = trained.register("-fixed", fixed, "-moving", moving, "-o", tmp_path, "-f", "0", "-d", "1")
    assert answer.code == 0, answer.err
    assert list(tmp_path.glob("*_1Warp.nii.gz"))
    assert not list(tmp_path.glob("*_WarpedLabels.nii.gz"))


def test_two_trained_folds_leave_a_choice(trained, tmp_path):
    answer = trained.register("-i", trained.dataset / "imagesTs", "-o", tmp_path)
    assert answer.code == 2
    assert "choose one with -f" in answer.err


def test_channels_are_registered_together(rich, tmp_path):
    answer = rich.register("-i", rich.dataset / "imagesTs", "-o", tmp_path)
    assert answer.code == 0, answer.err
    assert len(list(tmp_path.glob("*_Warped_000?.nii.gz"))) == 2
