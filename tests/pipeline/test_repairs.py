"""Data that is mended on request goes through all commands."""

import json
import shutil
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.settings import FINAL


@pytest.fixture(scope="module")
def mended(make_project):
    """As `trained`, but every label lies 5 mm beside its scan; planned so that this is let pass, and trained."""
    project = make_project(n_test=2)
    for path in (project.dataset / "labelsTr").iterdir():
        image: Any = nibabel.load(path)
        shifted = image.affine.copy()
        shifted[0, 3] += 5.0
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), shifted), path)
    refused = project.plan()
    assert refused.code == 3
    assert "--allow_geometry_mismatch" in refused.err
    assert project.plan("--allow_geometry_mismatch").code == 0
    answer = project.train("0", iterations=3)
    assert answer.code == 0, answer.err
    return project


def test_labels_laid_on_their_scans_teach_the_same_as_labels_that_lie_there(mended, trained):
    models = [load_checkpoint(project.model / "fold_0" / FINAL).networks for project in (mended, trained)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_labels_beside_their_scans_are_scored_where_they_belong(mended, trained):
    scores = [
        json.loads((p.model / "fold_0" / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
        for p in (mended, trained)
    ]
    assert scores[0] == scores[1]


def test_a_scan_with_holes_is_predicted_on_request_and_worth_a_look(trained, tmp_path):
    scan = tmp_path / "in" / "test_00_0000.nii.gz"
    scan.parent.mkdir()
    shutil.copy(trained.dataset / "imagesTs" / scan.name, scan)
    image: Any = nibabel.load(scan)
    array = np.asarray(image.dataobj).copy()
    array[1, 1, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, image.affine), scan)
    assert trained.predict(scan, tmp_path / "refused", "-f", "0").code == 6
    answer = trained.predict(scan, tmp_path / "out", "-f", "0", "--fix_nonfinite")
    assert answer.code == 0, answer.err
    assert "1 NaN or infinite voxels; replaced" in answer.out
    assert (tmp_path / "out" / "test_00.nii.gz").is_file()
