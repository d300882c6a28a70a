"""Options that nnU-Net's users know, and what they do here."""

import json
import shutil

import numpy as np

from rrlsam.cli import export_nnunet_dataset
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.scans.dataset import load_dataset
from rrlsam.settings import FINAL


def test_parts_make_together_what_one_call_makes(trained, projects, tmp_path):
    images = trained.dataset / "imagesTs"
    assert trained.predict(images, tmp_path / "whole", "-f", "0", "-c", "3d_fullres").code == 0
    for part in ("0", "1"):
        answer = trained.predict(images, tmp_path / "parts", "-f", "0", "-num_parts", "2", "-part_id", part)
        assert answer.code == 0, answer.err
        assert "1 masks" in answer.out
        assert (tmp_path / "parts" / f"report_part_{part}_of_2.json").is_file()
        assert json.loads((tmp_path / "parts" / "dataset.json").read_text())["numTraining"] == 2
    whole, parts = (projects.lasting_hashes(tmp_path / name) for name in ("whole", "parts"))
    told = {name for name in {*whole, *parts} if name.startswith("confidence")}
    assert "confidence_part_0_of_2.csv" in told
    assert {k: v for k, v in whole.items() if k not in told} == {k: v for k, v in parts.items() if k not in told}


def test_more_parts_than_scans_leave_some_without_work(trained, tmp_path):
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "0", "-num_parts", "5", "-part_id", "4")
    assert answer.code == 0
    assert "0 masks" in answer.out


def test_the_latest_checkpoint_can_predict(trained, tmp_path):
    source = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
    for name, chosen in (("final", "checkpoint_final.pth"), ("latest", "checkpoint_latest.pth")):
        assert trained.predict(source, tmp_path / name, "-f", "0", "-chk", chosen).code == 0
    # Once training has ended, both are the same model.
    masks = [(tmp_path / name / "test_00.nii.gz").read_bytes() for name in ("final", "latest")]
    assert masks[0] == masks[1]


def test_a_best_checkpoint_is_refused(trained, tmp_path):
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path, "-chk", "checkpoint_best.pth")
    assert answer.code == 2
    assert "checkpoint_best" in answer.err


def test_a_finished_training_is_scored_again_and_keeps_probabilities_on_request(trained):
    validation = trained.model / "fold_0" / "validation"
    summary = validation / "summary.json"
    before = summary.read_text()
    summary.unlink()
    assert not list(validation.glob("*.npz"))
    answer = trained.train("0", "--val", "--npz")
    assert answer.code == 0, answer.err
    assert summary.read_text() == before
    kept = list(validation.glob("*.npz"))
    assert {path.stem for path in kept} == {path.name.removesuffix(".nii.gz") for path in validation.glob("*.nii.gz")}
    for path in kept:
        assert np.load(path)["probabilities"].ndim == 4
        path.unlink()
    assert kept


def test_options_without_effect_are_taken(trained, projects, tmp_path):
    source = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
    extra = ("-npp", "0", "-nps", "3", "--not_on_device", "--verbose")
    for name, options in (("plain", ()), ("extra", extra)):
        answer = trained.predict(source, tmp_path / name, "-f", "0", *options)
        assert answer.code == 0, answer.err
    plain, extra = (projects.lasting_hashes(tmp_path / name) for name in ("plain", "extra"))
    assert plain == extra


def test_what_is_not_trained_is_not_scored(trained):
    answer = trained.train("2", "--val")
    assert answer.code == 2
    assert "holds no finished training" in answer.err
    assert not (trained.model / "fold_2").exists()


def test_scores_on_scans_that_were_trained_on_are_refused(trained):
    split = trained.dataset / "splits_final.json"
    checkpoint = load_checkpoint(trained.model / "fold_0" / FINAL)
    seen = [case for case in checkpoint.provenance.training_cases if case.startswith("lab")]
    held_out = [case for case in seen if case not in checkpoint.plan.atlases][:1]
    split.write_text(json.dumps([{"train": [], "val": held_out}]))
    try:
        answer = trained.train("0", "--val")
    finally:
        split.unlink()
    assert answer.code == 3
    assert "which the split now holds out" in answer.err


def test_predictions_become_a_data_set_for_nnunet(trained, projects, tmp_path):
    predicted = tmp_path / "predicted"
    assert trained.predict(trained.dataset / "imagesUn", predicted, "-f", "0").code == 0
    atlas = json.loads((trained.model / "fold_0" / "plan.json").read_text())["atlases"][0]
    fixed = ["-d", "1", "-i", str(predicted), "-o", str(tmp_path / "raw"), "--id", "9", "--atlas", atlas]
    answer = projects.run(export_nnunet_dataset.main, [*fixed, *trained.roots("raw", "results")])
    assert answer.code == 0, answer.err
    made = load_dataset(tmp_path / "raw" / "Dataset009_TinyPseudo")
    assert made.labelled == (atlas, "un_00", "un_01")


def test_planning_alone_prepares_nothing(make_project):
    project = make_project(n_labelled=2, n_unlabelled=0)
    assert project.plan("--no_pp", "-np", "0", "-npfp", "1", "-c", "3d_fullres", "--verbose").code == 0
    assert list(project.prepared.glob("*/atlas_*/plan.json"))
    assert not list(project.prepared.glob("*/cases"))
    shutil.rmtree(project.folder)


def test_a_training_with_several_labels_is_scored_again(make_project):
    project = make_project(n_labelled=3, n_unlabelled=1)
    assert project.plan().code == 0
    trained = project.train("0", "--shots", "2")
    assert trained.code == 0, trained.err
    again = project.train("0", "--val")
    assert again.code == 0, again.err
