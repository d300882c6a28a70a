"""Training sees one label. All others may say anything, as long as they are valid."""

import shutil
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ATLAS = "lab_01"


def train(project: Any, *shots: str) -> dict[str, torch.Tensor]:
    assert project.plan("--atlas", ATLAS).code == 0
    answer = project.train("all", "--atlas", ATLAS, *shots)
    assert answer.code == 0, answer.err
    return torch.load(project.model / "fold_all" / "checkpoint_final.pt", weights_only=True)["networks"]


@pytest.fixture(scope="module")
def project(make_project) -> Any:
    return make_project(n_labelled=3, n_unlabelled=1)


@pytest.fixture(scope="module")
def weights(project) -> dict[str, torch.Tensor]:
    return train(project)


def relabel(project: Any, cases: tuple[str, ...]) -> None:
    """Noise of the declared values in the place of labels."""
    for seed, case in enumerate(cases):
        path = project.dataset / "labelsTr" / f"{case}.nii.gz"
        image = sitk.ReadImage(str(path))
        noise = sitk.GetImageFromArray(
            np.random.default_rng(seed).integers(0, 3, image.GetSize()[::-1]).astype(np.uint8)
        )
        noise.CopyInformation(image)
        sitk.WriteImage(noise, str(path))


def with_other_labels(project: Any, make_project: Any, cases: tuple[str, ...]) -> Any:
    other = make_project(n_labelled=1, n_unlabelled=0)
    shutil.rmtree(other.dataset)
    shutil.copytree(project.dataset, other.dataset)
    relabel(other, cases)
    return other


def test_other_labels_leave_the_weights_as_they_are(project, weights, make_project):
    changed = train(with_other_labels(project, make_project, ("lab_00", "lab_02")))
    assert weights.keys() == changed.keys()
    assert all(torch.equal(weights[name], changed[name]) for name in weights)


def test_the_atlas_label_does_matter(project, weights, make_project):
    changed = train(with_other_labels(project, make_project, (ATLAS,)))
    pairs = [(weights[name], changed[name]) for name in weights if weights[name].shape == changed[name].shape]
    assert any(not torch.equal(first, second) for first, second in pairs)


def test_without_the_other_labels_the_weights_are_the_same_too(project, weights, make_project):
    other = with_other_labels(project, make_project, ())
    for case in ("lab_00", "lab_02"):
        (other.dataset / "labelsTr" / f"{case}.nii.gz").unlink()
    changed = train(other)
    assert all(torch.equal(weights[name], changed[name]) for name in weights)


def test_a_second_shot_is_learnt_from_and_a_third_scan_is_not(project, weights, make_project):
    two = train(with_other_labels(project, make_project, ()), "--atlas", f"{ATLAS},lab_02")
    assert any(not torch.equal(weights[name], two[name]) for name in weights)
    other = train(with_other_labels(project, make_project, ("lab_02",)), "--atlas", f"{ATLAS},lab_02")
    assert any(not torch.equal(two[name], other[name]) for name in two)
    same = train(with_other_labels(project, make_project, ("lab_00",)), "--atlas", f"{ATLAS},lab_02")
    assert all(torch.equal(two[name], same[name]) for name in two)
