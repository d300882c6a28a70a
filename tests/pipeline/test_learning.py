"""The method must learn, and its larger forms must run: distillation from SAM, coarse grids and patches."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from rrlsam.data.batches import Batch, Batches
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.system.files import sha256

ATLAS = "lab_00"


def dice_of(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["foreground_mean"]["Dice"]


@pytest.fixture(scope="module")
def learning(make_project) -> Any:
    """Two strongly warped phantoms to be memorised, without augmentation."""
    project = make_project(n_labelled=3, n_unlabelled=0, amplitude=4.0)
    assert project.plan("--atlas", ATLAS).code == 0

    def change(plan: dict[str, Any]) -> None:
        plan["augmentation"] = {"rotation_degrees": 0.0, "scale": 0.0, "mirror_axes": []}
        for stage, iterations in (("joint", 250), ("mutual", 50)):
            plan[stage] |= {"iterations": iterations, "learning_rate": 2e-3, "batch_size": 1}
        plan |= {"rounds": 1, "refinement_iterations": 20}

    project.edit_plans(change)
    return project


def scores_of(project: Any, iterations: int | None) -> tuple[float, float]:
    """Mean Dice of the network's registration and segmentation on the scans that were learnt from, the atlas aside."""
    answer = project.train("all", "--atlas", ATLAS, "--overwrite", iterations=iterations)
    assert answer.code == 0, answer.err
    folder = project.folder / f"after_{iterations}"
    for source, target in (("imagesTr", "scans"), ("labelsTr", "truth")):
        shutil.copytree(project.dataset / source, folder / target, ignore=shutil.ignore_patterns(f"{ATLAS}*"))
    assert project.predict(folder / "scans", folder / "masks", "--save_registration", "--refine", "0").code == 0
    for masks in ("masks", "masks/registration"):
        assert project.evaluate(folder / "truth", folder / masks, "-l", "1", "2").code == 0
    return dice_of(folder / "masks" / "registration"), dice_of(folder / "masks")


@pytest.fixture(scope="module")
def affine_start(learning) -> float:
    """Dice of the registration before it has learnt anything."""
    return scores_of(learning, 1)[0]


@pytest.fixture(scope="module")
def learnt(learning, affine_start) -> tuple[float, float]:
    return scores_of(learning, None)


@pytest.mark.usefixtures("affine_start")
def test_refinement_needs_no_training(learning, affine_start):
    """A field that is optimised for the scan is good from the first step on, and does not fold."""
    folder = learning.folder / "after_1"
    assert learning.predict(folder / "scans", folder / "refined", "--save_registration", "--refine", "20").code == 0
    masks = folder / "refined" / "registration"
    assert learning.evaluate(folder / "truth", masks, "-l", "1", "2").code == 0
    assert dice_of(masks) > affine_start + 0.1
    report = json.loads((folder / "refined" / "report.json").read_text())
    assert max(scan["fold_percent"] for scan in report["scans"]) == 0


def test_registration_becomes_better_than_the_affine_start(learnt, affine_start):
    assert affine_start < 0.7
    assert learnt[0] > 0.85


def test_segmentation_becomes_better_than_the_affine_start(learnt, affine_start):
    assert learnt[1] > max(0.8, affine_start + 0.1)


@pytest.mark.usefixtures("learnt")
def test_the_losses_fall(learning):
    joint = [record["terms"] for record in learning.metrics("all") if record["stage"] == "joint_reg_seg"]
    assert len(joint) == 250
    for term in ("similarity", "segmentation"):
        first, last = (sum(terms[term] for terms in part) for part in (joint[:20], joint[-20:]))
        assert last < 0.8 * first


@pytest.mark.usefixtures("learnt")
def test_the_registration_does_not_fold(learning):
    report = json.loads((learning.folder / "after_None" / "masks" / "report.json").read_text())
    assert max(scan["fold_percent"] for scan in report["scans"]) == 0


@pytest.fixture(scope="module")
def distilled(make_project, tiny_sam_checkpoint, tmp_path_factory) -> Any:
    """Trained with a teacher whose file is gone since."""
    project = make_project(n_labelled=1, n_unlabelled=2, n_test=1)
    sam = tmp_path_factory.mktemp("weights") / "sam.pth"
    shutil.copy(tiny_sam_checkpoint, sam)
    assert project.plan().code == 0

    def change(plan: dict[str, Any]) -> None:
        plan["distillation"] |= {"iterations": 40, "learning_rate": 1e-2}
        for stage in ("joint", "mutual"):
            plan[stage]["iterations"] = 2

    project.edit_plans(change)
    answer = project.train("all", sam=str(sam), iterations=None)
    assert answer.code == 0, answer.err
    sam.unlink()
    return project


def test_the_distance_to_sam_falls(distilled):
    losses = [record["terms"]["distillation"] for record in distilled.metrics("all") if record["stage"] == "distil_sam"]
    assert len(losses) == 40
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_model_knows_its_teacher(distilled, tiny_sam_checkpoint):
    checkpoint = load_checkpoint(distilled.model / "fold_all" / "checkpoint_final.pt")
    assert checkpoint.provenance.teacher == sha256(tiny_sam_checkpoint)
    assert checkpoint.progress.finished[0] == "distil_sam"


def test_prediction_needs_no_sam(distilled, tmp_path):
    answer = distilled.predict(distilled.dataset / "imagesTs", tmp_path)
    assert answer.code == 0
    assert (tmp_path / "test_00.nii.gz").is_file()


def test_no_weight_of_sam_is_in_the_model(distilled):
    networks = load_checkpoint(distilled.model / "fold_all" / "checkpoint_final.pt").networks
    assert not [name for name in networks if "image_encoder" in name or "pos_embed" in name]


def test_a_finished_training_needs_no_sam_to_be_continued(distilled):
    answer = distilled.train("all", "--c", sam=None, iterations=None)
    assert answer.code == 0, answer.err


def test_a_missing_file_of_weights_is_named(distilled):
    answer = distilled.train("0", sam="nowhere.pth", iterations=1)
    assert answer.code == 4
    assert "nowhere.pth: no such file" in answer.err


@pytest.fixture(scope="module")
def patched(make_project) -> Any:
    """A plan edited to register on a coarser grid and to segment patches."""
    project = make_project(n_labelled=2, n_unlabelled=1, n_test=1)
    assert project.plan().code == 0
    sizes = []

    def change(plan: dict[str, Any]) -> None:
        size = plan["grid"]["size_vox"]
        plan["grid"] |= {"registration_size_vox": [n // 2 // 4 * 4 for n in size], "patch_vox": [12, 16, 16]}
        sizes.append(size)

    project.edit_plans(change)
    answer = project.train("0", iterations=2)
    assert answer.code == 0, answer.err
    assert sizes
    assert all(n > patch for size in sizes for n, patch in zip(size, (12, 16, 16), strict=True))
    return project


def test_an_edited_plan_is_trained(patched):
    plan = load_checkpoint(patched.model / "fold_0" / "checkpoint_final.pt").plan
    assert plan.grid.patch_vox == (12, 16, 16)
    assert not plan.grid.whole


def test_patches_predict_the_whole_scan(patched, tmp_path):
    answer = patched.predict(patched.dataset / "imagesTs", tmp_path, "--save_registration", "-step_size", "0.75")
    assert answer.code == 0, answer.err
    assert patched.evaluate(patched.dataset / "labelsTs", tmp_path / "registration", "-l", "1", "2").code == 0
    assert dice_of(tmp_path / "registration") > 0.6


def test_an_only_label_is_never_looked_at_but_as_the_atlas_s(planned_small, monkeypatch):
    drawn, draw = [], Batches.draw

    def noted(batches: Batches, *given: Any, **named: Any) -> Batch:
        drawn.append(draw(batches, *given, **named))
        return drawn[-1]

    monkeypatch.setattr(Batches, "draw", noted)
    answer = planned_small.train("all", iterations=2)
    assert answer.code == 0, answer.err
    assert len({case for batch in drawn for case in batch.cases}) == 2, "the atlas and the other scan"
    assert all(batch.truth == () for batch in drawn)


def test_the_slices_that_sam_sees_can_be_chosen_and_stay(planned_small, tiny_sam_checkpoint):
    sam = str(tiny_sam_checkpoint)
    answer = planned_small.train("all", "--sam_axes", "all", sam=sam, iterations=1)
    assert answer.code == 0, answer.err
    kept = load_checkpoint(planned_small.model / "fold_all" / "checkpoint_final.pt")
    assert kept.plan.teacher_axes == (0, 1, 2)
    assert planned_small.train("all", "--c", "--sam_axes", "all", sam=None, iterations=1).code == 0
    answer = planned_small.train("all", "--c", "--sam_axes", "x", sam=None, iterations=1)
    assert answer.code == 3
    assert "was trained with other slices (--sam_axes)" in answer.err


@pytest.fixture
def planned_small(make_project) -> Any:
    project = make_project(n_labelled=1, n_unlabelled=1)
    assert project.plan().code == 0
    return project
