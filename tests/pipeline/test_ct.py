"""CT scans with thick slices, padding, metal, a tilted gantry and other fields of view, through every command."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli import apply_transform, jacobian, suggest_atlas
from rrlsam.geometry import geometry_of
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.planning.suggest import Suggestion
from rrlsam.preprocessing.preprocess import MOST_DEVIATIONS, SOFT_TISSUE_HU, window_ct
from rrlsam.scans.volume import same_grid
from rrlsam.system.jsonio import load_json

CASES = ("test_00", "test_01")


@pytest.fixture(scope="module")
def ct(make_project, ct_phantoms) -> Any:
    """Planned with the CT rule and trained for three iterations a stage."""
    project = make_project(ct_phantoms.make_ct_dataset)
    answer = project.plan()
    assert answer.code == 0, answer.err
    answer = project.train("0", iterations=3)
    assert answer.code == 0, answer.err
    return project


@pytest.fixture(scope="module")
def registered(ct) -> Path:
    """The atlas brought to the test scans without a model."""
    out = ct.folder / "without_model"
    answer = ct.register("-i", ct.dataset / "imagesTs", "-o", out, *atlas_options(ct))
    assert answer.code == 0, answer.err
    return out


def atlas_options(ct) -> list[object]:
    image, label = (ct.dataset / name for name in ("imagesTr/lab_00_0000.nii.gz", "labelsTr/lab_00.nii.gz"))
    return ["-moving", image, "-moving_labels", label]


def read(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def scan_of(ct, case: str) -> sitk.Image:
    return read(ct.dataset / "imagesTs" / f"{case}_0000.nii.gz")


def dice_by_structure(ct, label: sitk.Image, case: str) -> dict[str, float]:
    """Of a label map in the grid of a test scan."""
    truth = sitk.GetArrayFromImage(read(ct.dataset / "labelsTs" / f"{case}.nii.gz"))
    found = sitk.GetArrayFromImage(label)
    return {
        name: 2 * ((truth == v) & (found == v)).sum() / ((truth == v).sum() + (found == v).sum())
        for name, v in {"left": 1, "right": 2}.items()
    }


def test_the_window_reaches_from_the_atlas_lungs_to_soft_tissue(ct, ct_phantoms):
    checkpoint = load_checkpoint(ct.model / "fold_0" / "checkpoint_final.pt")
    assert checkpoint.plan.data.normalization == ("ct",)
    assert checkpoint.plan.data.normalize_inside_nonzero == (False,)
    (atlas,) = checkpoint.atlases
    (stats,) = atlas.foreground
    assert stats.mean == pytest.approx(ct_phantoms.LUNG, abs=10)
    units = np.array([-3024.0, -1000.0, -850.0, 40.0, 20000.0], np.float32).reshape(1, 1, 1, 5)
    air, (_, soft) = stats.percentile_00_5, SOFT_TISSUE_HU
    assert stats.percentile_99_5 < soft
    expected = (np.array([air, air, -850.0, 40.0, soft]) - stats.mean) / max(stats.std, (soft - air) / MOST_DEVIATIONS)
    windowed = window_ct(units, checkpoint.plan.data, atlas.foreground)
    np.testing.assert_allclose(windowed.ravel(), expected, atol=1e-4)


def test_the_losses_are_finite(ct):
    terms = [value for record in ct.metrics("0") for value in record["terms"].values()]
    assert len(terms) > 10
    assert all(map(math.isfinite, terms))


def test_masks_come_back_in_every_scans_own_grid(ct, tmp_path):
    answer = ct.predict(ct.dataset / "imagesTs", tmp_path, "--save_probabilities", "--save_registration")
    assert answer.code == 0, answer.err
    for case in CASES:
        grid = geometry_of(scan_of(ct, case))
        for folder in (tmp_path, tmp_path / "registration"):
            mask = read(folder / f"{case}.nii.gz")
            assert same_grid(geometry_of(mask), grid)
            assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
        assert np.isfinite(np.load(tmp_path / f"{case}.npz")["probabilities"]).all()
        warped = dice_by_structure(ct, read(tmp_path / "registration" / f"{case}.nii.gz"), case)
        assert min(warped.values()) > 0.8
    assert ct.evaluate(ct.dataset / "labelsTs", tmp_path).code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert math.isfinite(summary["foreground_mean"]["Dice"])


@pytest.mark.parametrize("case", CASES)
def test_registration_without_a_model_is_better_than_none(ct, registered, case):
    atlas = read(ct.dataset / "labelsTr" / "lab_00.nii.gz")
    unmoved = sitk.Resample(atlas, scan_of(ct, case), sitk.Transform(), sitk.sitkNearestNeighbor)
    before = dice_by_structure(ct, unmoved, case)
    after = dice_by_structure(ct, read(registered / f"{case}_WarpedLabels.nii.gz"), case)
    for side in before:
        assert after[side] > max(0.85, before[side] + 0.02), (before, after)


def test_warped_scans_are_finite_and_do_not_fold(ct, registered):
    report = json.loads((registered / "registration.json").read_text())
    assert [scan["jacobian"]["fold_percent"] for scan in report["registered"]] == [0, 0]
    for case in CASES:
        warped = read(registered / f"{case}_Warped.nii.gz")
        assert same_grid(geometry_of(warped), geometry_of(scan_of(ct, case)))
        assert np.isfinite(sitk.GetArrayFromImage(warped)).all()


def test_the_model_registers_its_atlas(ct, tmp_path):
    answer = ct.register("-i", ct.dataset / "imagesTs", "-o", tmp_path)
    assert answer.code == 0, answer.err
    for case in CASES:
        label = read(tmp_path / f"{case}_WarpedLabels.nii.gz")
        assert min(dice_by_structure(ct, label, case).values()) > 0.85


def test_a_transform_goes_there_and_back_on_a_tilted_grid(ct, registered, tmp_path):
    transform = ["-t", str(registered / "test_00_Transform.json")]
    truth = ct.dataset / "labelsTs" / "test_00.nii.gz"
    back = tmp_path / "back.nii.gz"
    assert apply_transform.main(["-i", str(truth), "-o", str(back), "--labels", "--inverse", *transform]) == 0
    atlas = read(ct.dataset / "labelsTr" / "lab_00.nii.gz")
    assert same_grid(geometry_of(read(back)), geometry_of(atlas))
    there = tmp_path / "there.nii.gz"
    assert apply_transform.main(["-i", str(back), "-o", str(there), "--labels", *transform]) == 0
    assert min(dice_by_structure(ct, read(there), "test_00").values()) > 0.85


def test_determinants_are_finite(registered, tmp_path):
    asked = ["-o", str(tmp_path / "map.nii.gz"), "--json", str(tmp_path / "numbers.json")]
    assert jacobian.main([str(registered / "test_01_1Warp.nii.gz"), *asked]) == 0
    assert np.isfinite(sitk.GetArrayFromImage(read(tmp_path / "map.nii.gz"))).all()
    assert all(map(math.isfinite, json.loads((tmp_path / "numbers.json").read_text()).values()))


def test_atlases_are_ranked_across_padding_and_fields_of_view(ct, tmp_path):
    asked = ["-i", str(ct.dataset / "imagesUn"), "-o", str(tmp_path), "--disable_progress_bar"]
    assert suggest_atlas.main(asked) == 0
    suggestion = load_json(Suggestion, tmp_path / "suggestion.json")
    assert sorted(candidate.case for candidate in suggestion.candidates) == ["un_00", "un_01", "un_02"]
    assert all(0 <= candidate.distance < 1 for candidate in suggestion.candidates)
    assert [candidate.alignment for candidate in suggestion.candidates] == ["affine"] * 3
