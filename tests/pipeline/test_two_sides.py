"""Bodies that are nearly their own mirror image, through the commands."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.settings import FINAL


@pytest.fixture(scope="module")
def two_sided(make_project):
    """Planned, and trained with one label and with two."""
    project = make_project(n_labelled=2, n_unlabelled=2, n_test=1, two_sided=True)
    assert project.plan("-f", "all").code == 0
    answer = project.train("all", "--atlas", "lab_00", iterations=3)
    assert answer.code == 0, answer.err
    return project


def test_the_plan_tells_what_changes_places(two_sided):
    plans = [json.loads(path.read_text()) for path in two_sided.prepared.glob("*/atlas_*/plan.json")]
    assert plans
    assert all(plan["reflection"]["swapped"] == [0, 2, 1, 3] for plan in plans)


def test_the_model_carries_the_reflection_and_predicts_with_it(two_sided, tmp_path):
    assert load_checkpoint(two_sided.model / "fold_all" / FINAL).plan.reflection is not None
    masks = []
    for name, options in (("both", ()), ("one", ("--disable_tta",))):
        answer = two_sided.predict(two_sided.dataset / "imagesTs", tmp_path / name, "--save_probabilities", *options)
        assert answer.code == 0, answer.err
        masks.append(np.load(tmp_path / name / "test_00.npz")["probabilities"].astype(np.float32))
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / "test_00.nii.gz")))
        assert set(np.unique(mask)) <= {0, 1, 2, 3}
    assert not np.allclose(*masks, atol=1e-3)


def test_several_labels_can_be_learnt_from_both_sides(two_sided):
    answer = two_sided.train("all", "--atlas", "lab_00,lab_01", "--overwrite")
    assert answer.code == 0, answer.err
    kept = load_checkpoint(two_sided.model / "fold_all" / FINAL)
    assert kept.plan.reflection is not None
    assert kept.provenance.labelled_cases == ("lab_00", "lab_01")
    assert not (two_sided.model / "fold_all" / "fields").exists()
