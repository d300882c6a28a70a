"""Registration of two images, and its transform as files that other tools read."""

import dataclasses
import json
import logging
import os
import resource
import signal

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from rrlsam.cli import apply_transform, jacobian, register
from rrlsam.errors import BadInputError, ResourceError, UsageError
from rrlsam.geometry import Geometry, geometry_of, make_geometry, to_sitk
from rrlsam.nets.jacobian import fold_percent, jacobian_determinant
from rrlsam.registration import transform_files
from rrlsam.registration.apply import read_points, warp_image, warp_labels, warp_points, write_points
from rrlsam.registration.learn2reg import (
    learn2reg_field,
    learn2reg_name,
    require_distinct_names,
    save_learn2reg,
)
from rrlsam.registration.pair import PairTransform, field_image, in_voxels
from rrlsam.registration.register import register_arrays, register_images, shared_part, working_grid
from rrlsam.registration.register_scans import read_moving
from rrlsam.registration.transform_files import inverse_errors, load_transform, save_transform
from rrlsam.scans.inputs import find_inputs
from rrlsam.scans.likeness import UNLIKE
from rrlsam.scans.repairs import Repairs
from rrlsam.system.own_results import REPLACED

OBLIQUE = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.15, 1.0, 0.25], [0.1, -0.2, 1.0]]))[0]
OBLIQUE *= np.sign(np.diag(OBLIQUE))


def _grid(shape, spacing, direction, origin) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction) * np.asarray(spacing)
    affine[:3, 3] = origin
    return make_geometry(shape, affine)


GRIDS = {
    "plain": _grid((20, 24, 22), (1, 1, 1), np.eye(3), (0, 0, 0)),
    "flipped": _grid((24, 22, 26), (1, 1.1, 0.9), np.diag([-1.0, -1.0, 1.0]), (22, 24, -1)),
    "oblique": _grid((22, 26, 24), (0.9, 1.0, 1.1), OBLIQUE, (-2, 1, -2)),
    "anisotropic": _grid((9, 30, 28), (0.8, 0.8, 2.6), np.eye(3), (-1, 0, -1)),
}


def _texture(grid: Geometry, seed: int = 0) -> sitk.Image:
    """A smooth random image of about -1 to 1 on a grid."""
    values = gaussian_filter(np.random.default_rng(seed).normal(size=grid.shape), 2.0)
    return to_sitk((values / np.abs(values).max()).astype(np.float32), grid)


def _smooth_field(grid: Geometry, amplitude: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(3, *grid.shape))
    field = np.stack([gaussian_filter(part, 4.0) for part in noise])
    return (amplitude * field / np.abs(field).max()).astype(np.float32)


def _transform(fixed: Geometry, moving: Geometry) -> PairTransform:
    """A smooth field, its inverse by fixed-point iteration, and an affine that brings the grids' centres together."""
    affine = np.eye(4)
    affine[:3, :3] += 0.05 * np.array([[0.4, -1, 0.5], [1, -0.3, 0.2], [-0.6, 0.3, 0.5]])
    affine[:3, 3] = moving.centre_mm - affine[:3, :3] @ fixed.centre_mm
    field = _smooth_field(fixed, 2.0)
    voxels, grid = in_voxels(field, fixed), np.indices(fixed.shape).astype(float)
    back = np.zeros_like(voxels)
    for _ in range(30):
        at = [grid[axis] + back[2 - axis] for axis in range(3)]
        back = -np.stack([map_coordinates(part, at, order=1, mode="nearest") for part in voxels])
    inverse = np.einsum("ij,jzyx->izyx", fixed.matrix[:3, :3], back).astype(np.float32)
    return PairTransform(fixed=fixed, moving=moving, affine=affine, field=field, inverse_field=inverse)


def _by_hand(moving: sitk.Image, transform: PairTransform) -> tuple[np.ndarray, np.ndarray]:
    """The moving image pulled by the definition, and which voxels are read well inside of it."""
    z, y, x = np.indices(transform.fixed.shape)
    index = np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1).astype(float)
    world = transform.fixed.matrix @ index
    world[:3] += transform.field.reshape(3, -1)
    read = (np.linalg.inv(transform.moving.matrix) @ transform.affine @ world)[2::-1]
    inside = ((read > 0.01) & (read < np.array(transform.moving.shape)[:, None] - 1.01)).all(0)
    values = map_coordinates(sitk.GetArrayFromImage(moving), read, order=1)
    return np.asarray(values).reshape(transform.fixed.shape), np.asarray(inside).reshape(transform.fixed.shape)


def _save(transform: PairTransform, folder, **changes):
    given = {
        "fixed_name": "case_0007",
        "moving_name": "atlas_0012",
        "method": "by hand",
        "alignment": "affine",
        "refinement_iterations": 0,
        "seconds": 0.0,
        "body": np.ones(transform.fixed.shape, bool),
        "likeness": None,
    }
    return save_transform(transform, folder / "case_0007", **(given | changes))


PAIRS = [("plain", "plain"), ("oblique", "flipped"), ("flipped", "anisotropic"), ("anisotropic", "oblique")]


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
def test_itk_and_ants_warp_the_original_file_as_we_do(fixed, moving, tmp_path):
    ants = pytest.importorskip("ants")
    transform, image = _transform(GRIDS[fixed], GRIDS[moving]), _texture(GRIDS[moving])
    expected, inside = _by_hand(image, transform)
    assert inside.mean() > 0.3
    ours = sitk.GetArrayFromImage(warp_image(image, transform))
    _save(transform, tmp_path)
    sitk.WriteImage(image, str(tmp_path / "moving.nii.gz"))
    reference = to_sitk(np.zeros(GRIDS[fixed].shape, np.float32), GRIDS[fixed])
    sitk.WriteImage(reference, str(tmp_path / "fixed.nii.gz"))
    stored = sitk.ReadImage(str(tmp_path / "moving.nii.gz"))
    composite = sitk.ReadTransform(str(tmp_path / "case_0007_Composite.h5"))
    by_itk = sitk.GetArrayFromImage(sitk.Resample(stored, reference, composite, sitk.sitkLinear))
    chain = [str(tmp_path / f"case_0007_{name}") for name in ("1Warp.nii.gz", "0GenericAffine.mat")]
    warped = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")), ants.image_read(str(tmp_path / "moving.nii.gz")), chain
    )
    by_ants = warped.numpy().transpose(2, 1, 0)
    for found in (ours, by_itk, by_ants):
        assert np.abs(found - expected)[inside].max() < 2e-3  # of a range of 2
    back = [chain[1], str(tmp_path / "case_0007_1InverseWarp.nii.gz")]
    scan = _texture(GRIDS[fixed], 1)
    sitk.WriteImage(scan, str(tmp_path / "fixed.nii.gz"))
    returned = ants.apply_transforms(
        ants.image_read(str(tmp_path / "moving.nii.gz")),
        ants.image_read(str(tmp_path / "fixed.nii.gz")),
        back,
        whichtoinvert=[True, False],
    )
    there = sitk.GetArrayFromImage(warp_image(scan, transform, inverse=True))
    assert np.abs(returned.numpy().transpose(2, 1, 0) - there).max() < 2e-3


def test_the_files_are_named_as_ants_names_them_and_read_back(tmp_path):
    transform = _transform(GRIDS["oblique"], GRIDS["flipped"])
    written = _save(transform, tmp_path)
    names = {path.name.removeprefix("case_0007_") for path in tmp_path.iterdir()}
    assert names == {"0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz", "Composite.h5", "Transform.json"}
    read, description = load_transform(tmp_path / "case_0007_Transform.json")
    np.testing.assert_allclose(read.affine, transform.affine, atol=1e-9)
    np.testing.assert_allclose(read.field, transform.field, atol=1e-6)
    assert description == written
    assert description.units == "mm"
    assert description.inverse_error_99_vox < 0.3


@pytest.mark.parametrize("name", ["../elsewhere.mat", "", "/etc/passwd"])
def test_a_description_may_only_name_its_neighbours(name, tmp_path):
    _save(_transform(GRIDS["plain"], GRIDS["plain"]), tmp_path)
    path = tmp_path / "case_0007_Transform.json"
    content = json.loads(path.read_text())
    content["files"]["affine"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(BadInputError, match="files must name one file each"):
        load_transform(path)


def test_an_affine_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    _save(_transform(GRIDS["plain"], GRIDS["plain"]), tmp_path)
    affine = tmp_path / "case_0007_0GenericAffine.mat"
    affine.unlink()
    os.mkfifo(affine)
    with pytest.raises(BadInputError, match="is not a regular file"):
        load_transform(tmp_path / "case_0007_Transform.json")


def test_warped_labels_hold_no_new_values():
    transform = _transform(GRIDS["oblique"], GRIDS["flipped"])
    labels = to_sitk(np.random.default_rng(0).choice([0, 3, 200, 300], GRIDS["flipped"].shape), GRIDS["flipped"])
    warped = sitk.GetArrayFromImage(warp_labels(labels, transform))
    assert set(np.unique(warped)) <= {0, 3, 200, 300}
    assert warped.shape == GRIDS["oblique"].shape


@pytest.mark.parametrize("background", [0, 7])
def test_labels_of_large_ontologies_keep_their_numbers(background):
    transform = _transform(GRIDS["oblique"], GRIDS["flipped"])
    small = np.random.default_rng(0).choice([background, 300], GRIDS["flipped"].shape).astype(np.int32)
    large = np.where(small == 300, 614_454_277, small)
    warped, expected = (
        sitk.GetArrayFromImage(warp_labels(to_sitk(label, GRIDS["flipped"]), transform)) for label in (large, small)
    )
    np.testing.assert_array_equal(warped, np.where(expected == 300, 614_454_277, expected.astype(np.int64)))


def test_of_many_voxels_some_tell_how_exact_the_inverse_is(monkeypatch):
    transform, body = _transform(GRIDS["oblique"], GRIDS["flipped"]), np.ones(GRIDS["oblique"].shape, dtype=bool)
    every = inverse_errors(transform, body)
    monkeypatch.setattr(transform_files, "MOST_CHECKED", 100)
    some = inverse_errors(transform, body)
    np.testing.assert_array_equal(some, every[:: -(-body.size // 100)])
    assert 50 < len(some) <= 100


def test_each_voxel_takes_its_largest_class():
    """Structures are looked at in their boxes only; all of the grid gives the same."""
    transform = _transform(GRIDS["oblique"], GRIDS["anisotropic"])
    coarse = np.random.default_rng(0).integers(0, 5, (3, 10, 7)).repeat(3, 0).repeat(3, 1).repeat(4, 2)
    labels = to_sitk(coarse.astype(np.int32), GRIDS["anisotropic"])
    shares = [sitk.GetArrayFromImage(warp_image(sitk.Cast(labels == v, sitk.sitkFloat32), transform)) for v in range(5)]
    expected = np.where(np.max(shares, 0) > 1e-6, np.argmax(shares, 0), 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(warp_labels(labels, transform)), expected)


def test_points_go_against_images_and_back():
    transform = _transform(GRIDS["oblique"], GRIDS["flipped"])
    centre = transform.fixed.centre_mm
    points = centre + np.random.default_rng(0).uniform(-4, 4, (20, 3))
    there = warp_points(points.tolist(), transform, inverse=True)
    index = np.linalg.inv(transform.fixed.matrix) @ np.c_[points, np.ones(20)].T
    moved = [map_coordinates(part, index[2::-1], order=1) for part in transform.field]
    np.testing.assert_allclose(there, ((transform.affine @ np.c_[points + np.array(moved).T, np.ones(20)].T).T)[:, :3])
    assert np.abs(warp_points(there.tolist(), transform) - points).max() < 0.1


def test_a_table_of_points_keeps_its_other_columns(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("name,x,y,z\ntip,1,2,3\nbase,4,5,6.5\n")
    header, rows, points = read_points(path)
    write_points(header, rows, points + 1, tmp_path / "moved.csv")
    assert (tmp_path / "moved.csv").read_text().splitlines()[1] == "tip,2.000000,3.000000,4.000000"


def test_empty_lines_of_a_table_are_no_points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y,z\n\n1,2,3\n , ,\n4,5,6\n\n")
    assert read_points(path)[2].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("a,b\n1,2\n", 1),
        ("x,y,z\n1,2\n", 2),
        ("x,y,z\n1,2,3\n\n1,2,three\n", 4),
        ("x,y,z\n1,2,nan\n", 2),
        (f"x,y,z,note\n1,2,3,{'long' * 40_000}\n", 2),
    ],
    ids=["empty", "other columns", "too few", "no number", "not finite", "too long"],
)
def test_a_table_that_is_no_list_of_points_is_refused(text, line, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(BadInputError, match=rf"points\.csv: line {line}: "):
        read_points(path)


def test_only_results_of_ours_are_replaced(tmp_path, phantoms, caplog):
    """Files that somebody else made or changed are kept aside."""
    for seed, case in enumerate(("fixed", "moving")):
        phantoms.write_volume(phantoms.phantom(seed)[0][0], tmp_path / f"{case}.nii.gz")
    given = [f"-{case}={tmp_path / case}.nii.gz" for case in ("fixed", "moving")]
    asked, out = [*given, "-o", str(tmp_path / "out"), "--refine", "0", "-device", "cpu"], tmp_path / "out"
    assert register.main(asked) == register.main(asked) == 0
    assert not (out / REPLACED).exists()
    (out / "fixed_Warped.nii.gz").write_text("mine")
    (out / "fixed_notes.txt").write_text("mine")
    assert register.main(asked) == 0
    assert [(path.name, path.read_text()) for path in (out / REPLACED).iterdir()] == [("fixed_Warped.nii.gz", "mine")]
    assert (out / "fixed_notes.txt").exists()
    assert list((out / ".rrlsam").glob("new*")) == []


def _scans(phantoms, size=(32, 36, 34)) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Image and label of two phantoms that differ by a known deformation of some voxels."""
    return phantoms.phantom(3, size, amplitude=4.0), phantoms.phantom(0, size)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2)]))


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), OBLIQUE], ids=["same", "flipped", "oblique"]
)
def test_two_scans_are_registered_without_a_model(phantoms, direction):
    (fixed, truth), (moving, label) = _scans(phantoms)
    grid = _grid(fixed.shape[1:], (1, 1, 1), np.eye(3), (0, 0, 0))
    other = _grid(moving.shape[1:], (1, 1, 1), direction, (200, -90, 30))  # its world has nothing to do with the other
    if direction is not OBLIQUE and direction[0, 0] < 0:
        moving, label = moving[:, :, ::-1, ::-1].copy(), label[:, ::-1, ::-1].copy()
    found = register_images(to_sitk(fixed[0], grid), to_sitk(moving[0], other), iterations=20, device="cpu")
    warped = sitk.GetArrayFromImage(warp_labels(to_sitk(label.astype(np.int32), other), found))
    before = _overlap(truth, sitk.GetArrayFromImage(to_sitk(label, grid))) if direction is OBLIQUE else None
    assert _overlap(truth, warped) > 0.85
    assert before is None or _overlap(truth, warped) > before + 0.05
    for inverse in (False, True):
        assert fold_percent(found.field_in_voxels(inverse=inverse)) == 0
    errors = inverse_errors(found, fixed[0] > 0)
    assert np.median(errors) < 0.25
    assert np.percentile(errors, 99) < 1


def test_arrays_are_registered_in_their_voxels(phantoms):
    (fixed, truth), (moving, label) = _scans(phantoms)
    found = register_arrays(
        fixed, moving[0], fixed_spacing_mm=(2.0, 1.0, 1.0), moving_spacing_mm=(2.0, 1.0, 1.0), device="cpu"
    )
    grid = np.indices(truth.shape).astype(float)
    assert found.field_in_voxels().shape == (3, *truth.shape)
    matrix = np.linalg.inv(found.moving.matrix) @ found.affine @ found.fixed.matrix
    read = (
        np.einsum("ij,jzyx->izyx", matrix[:3, :3], grid[::-1] + found.field_in_voxels())
        + matrix[:3, 3, None, None, None]
    )
    assert _overlap(truth, map_coordinates(label, read[::-1], order=0)) > 0.85


def test_modalities_are_registered_by_descriptors(phantoms):
    (fixed, truth), (moving, label) = _scans(phantoms)
    inverted = np.where(moving > 0, 260 - moving, 0)
    found = register_arrays(fixed, inverted, metric="mind", device="cpu")
    warped = sitk.GetArrayFromImage(warp_labels(to_sitk(label.astype(np.int32), found.moving), found))
    start = PairTransform(
        fixed=found.fixed,
        moving=found.moving,
        affine=found.affine,
        field=0 * found.field,
        inverse_field=0 * found.field,
    )
    before = sitk.GetArrayFromImage(warp_labels(to_sitk(label.astype(np.int32), found.moving), start))
    assert _overlap(truth, warped) > _overlap(truth, before)


def test_where_one_scan_is_a_small_part_of_the_other_only_that_part_is_worked_on():
    own = _grid((200, 200, 200), (1, 1, 1), np.eye(3), (0, 0, 0))
    other = _grid((20, 40, 40), (1, 1, 2), np.eye(3), (30.5, 100.5, 150.5))
    part = shared_part(own, other, np.eye(4))
    # 40 mm along each axis and a margin of 6 mm
    corner = part.matrix[:3, 3]
    assert np.abs(corner - (24, 94, 144)).max() <= 1
    assert part.shape == (54, 53, 53)
    assert working_grid(part).spacing_mm == (1, 1, 1) != working_grid(own).spacing_mm
    moved = np.eye(4)
    moved[:3, 3] = -100, 0, 40
    assert shared_part(own, other, moved).shape == (17, 53, 4), "the scan ends there"
    assert shared_part(own, own, np.eye(4)) == own
    assert shared_part(own, _grid((150, 200, 200), (1, 1, 1), np.eye(3), (0, 0, 0)), np.eye(4)) == own


def test_a_part_is_registered_with_a_whole(phantoms):
    """Where the rest of the moving scan is in the way of a fine grid, and its padding no intensity."""
    (fixed, truth), (moving, label) = _scans(phantoms)
    size, z = moving.shape[1:], 60
    whole = np.full((200, *size[1:]), -3024.0, np.float32)
    whole[:140] = np.random.default_rng(0).normal(0, 1, whole[:140].shape)
    whole[z : z + size[0]] += moving[0]
    labels = np.zeros(whole.shape, np.int32)
    labels[z : z + size[0]] = label
    still, grid = _grid(size, (1, 1, 1), np.eye(3), (0, 0, 0)), _grid(whole.shape, (1, 1, 1), np.eye(3), (0, 0, -500))
    found = register_images(to_sitk(fixed[0], still), to_sitk(whole, grid), iterations=20, device="cpu")
    assert _overlap(truth, sitk.GetArrayFromImage(warp_labels(to_sitk(labels, grid), found))) > 0.85


def test_identical_scans_stay_where_they_are(phantoms):
    fixed, label = phantoms.phantom(0, (32, 36, 34))
    found = register_arrays(fixed, fixed, device="cpu")
    np.testing.assert_allclose(found.affine, np.eye(4), atol=0.02)
    assert np.abs(found.field).mean() < 0.1
    values = to_sitk(label.astype(np.int32), found.moving)
    assert _overlap(label, sitk.GetArrayFromImage(warp_labels(values, found))) > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :1], "each of three axes needs 4 or more"),
        (lambda a: np.concatenate([a, a]), "1 channel.* the moving one 2"),
        (lambda a: np.where(a > 100, np.nan, a), "NaN or infinite"),
        (lambda a: 0 * a + 7, "one single intensity"),
    ],
    ids=["one slice", "channels", "not finite", "constant"],
)
def test_what_cannot_be_registered_is_refused(phantoms, change, message):
    image, _ = phantoms.phantom(0)
    with pytest.raises(BadInputError, match=message):
        register_arrays(image, change(image), device="cpu")


def test_unknown_metrics_and_shapes_are_refused(phantoms):
    image, _ = phantoms.phantom(0)
    with pytest.raises(UsageError, match="lncc, mind"):
        register_arrays(image, image, metric="ssd", device="cpu")
    with pytest.raises(UsageError, match="no volume"):
        register_arrays(image[0, 0], image, device="cpu")


@pytest.mark.parametrize("name", GRIDS)
def test_determinants_do_not_depend_on_where_the_axes_point(name):
    """u(x) = M x in the world: the determinant is det(I + M) on any grid."""
    grid, matrix = GRIDS[name], 0.1 * np.array([[1.0, 0.5, 0], [0, -2, 0.3], [0.2, 0, 1.5]])
    z, y, x = np.indices(grid.shape)
    world = np.einsum("ij,jzyx->izyx", grid.matrix[:3, :3], np.stack([x, y, z]).astype(float))
    field = np.einsum("ij,jzyx->izyx", matrix, world)
    determinant = jacobian_determinant(in_voxels(field, grid))
    np.testing.assert_allclose(determinant, np.linalg.det(np.eye(3) + matrix), rtol=1e-4)


def test_a_learn2reg_field_reproduces_the_warp(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    grid = GRIDS["oblique"]
    transform, image = _transform(grid, grid), _texture(grid)
    save_learn2reg(transform, tmp_path / "disp.nii.gz")
    stored = nibabel.load(tmp_path / "disp.nii.gz")
    field = np.asarray(stored.dataobj)
    assert field.shape == (*grid.shape[::-1], 3)
    assert field.dtype == np.float32
    np.testing.assert_array_equal(stored.affine, np.eye(4))
    identity = np.indices(field.shape[:3]).astype(float)
    moving = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    warped = map_coordinates(moving, identity + np.moveaxis(field, -1, 0), order=1)
    expected, inside = _by_hand(image, transform)
    assert np.abs(warped.transpose(2, 1, 0) - expected)[inside].max() < 2e-3


def test_learn2reg_names_are_made_of_the_cases_numbers():
    assert learn2reg_name("OASIS_0007", "case12_mr") == "disp_0007_0000_0012_0000.nii.gz"
    assert learn2reg_name("OASIS_0007", "case12", short=True) == "disp_0007_0012.nii.gz"
    assert learn2reg_name("NLST_0001", "NLST_0001_0001") == "disp_0001_0000_0001_0001.nii.gz"
    assert learn2reg_name("NLST_0001", "NLST_0002_0001", short=True) == "disp_0001_0002.nii.gz"
    with pytest.raises(UsageError, match="at most four digits"):
        learn2reg_name("case_12345", "case_1")


def test_learn2reg_fields_do_not_take_each_others_place():
    require_distinct_names(["sub-01_ses-1", "sub-02_ses-2", "nameless", "other"], "a_9")
    with pytest.raises(UsageError, match="sub-01_ses-1 and sub-02_ses-1: both fields would be disp_0001_0000_0009"):
        require_distinct_names(["sub-01_ses-1", "sub-02_ses-1"], "a_9")


def test_learn2reg_needs_one_grid():
    with pytest.raises(BadInputError, match="on one grid"):
        learn2reg_field(_transform(GRIDS["oblique"], GRIDS["flipped"]))


@pytest.fixture
def files(phantoms, tmp_path):
    """Two fixed scans and one moving one with labels, as files."""
    for case, seed in (("a_0001", 3), ("b_0002", 4)):
        phantoms.write_volume(phantoms.phantom(seed)[0][0], tmp_path / "in" / f"{case}_0000.nii.gz")
    image, label = phantoms.phantom(0)
    phantoms.write_volume(image[0], tmp_path / "atlas_0009.nii.gz")
    phantoms.write_volume(label, tmp_path / "atlas_label.nii.gz")
    return tmp_path


def _register(files, *arguments: str) -> int:
    moving = ["-moving", str(files / "atlas_0009.nii.gz"), "-moving_labels", str(files / "atlas_label.nii.gz")]
    return register.main(["-o", str(files / "out"), *moving, "-device", "cpu", "--disable_progress_bar", *arguments])


def test_a_folder_is_registered_and_used(files, capsys):
    assert _register(files, "-i", str(files / "in"), "--refine", "5", "--learn2reg") == 0
    out = files / "out"
    endings = {path.name.removeprefix("a_0001_") for path in out.glob("a_0001_*")}
    assert endings == {
        "0GenericAffine.mat",
        "1Warp.nii.gz",
        "1InverseWarp.nii.gz",
        "Composite.h5",
        "Transform.json",
        "Warped.nii.gz",
        "InverseWarped.nii.gz",
        "WarpedLabels.nii.gz",
        "Registration.png",
    }
    assert (out / "disp_0002_0000_0009_0000.nii.gz").exists()
    report = json.loads((out / "registration.json").read_text())
    assert [scan["fixed_name"] for scan in report["registered"]] == ["a_0001", "b_0002"]
    assert report["failures"] == []

    transform = ["-t", str(out / "a_0001_Transform.json")]
    given = ["-i", str(files / "atlas_0009.nii.gz"), "-o", str(files / "again.nii.gz")]
    assert apply_transform.main([*given, *transform]) == 0
    again, first = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (given[3], out / "a_0001_Warped.nii.gz"))
    np.testing.assert_allclose(again, first, atol=1e-3)
    labels = ["-i", str(files / "atlas_label.nii.gz"), "-o", str(files / "label.nii.gz"), "--labels"]
    assert apply_transform.main([*labels, *transform, "-r", str(files / "in" / "b_0002_0000.nii.gz")]) == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(labels[3])))) == {0, 1, 2}
    (files / "p.csv").write_text("x,y,z\n10,11,9\n")
    for source, target, back in (("p", "q", ["--inverse"]), ("q", "r", [])):
        asked = ["-i", str(files / f"{source}.csv"), "-o", str(files / f"{target}.csv")]
        assert apply_transform.main([*asked, *transform, *back]) == 0
    np.testing.assert_allclose(read_points(files / "r.csv")[2], [[10, 11, 9]], atol=0.2)
    assert apply_transform.main(["-i", str(files / "p.csv"), "-o", "x.csv", *transform, "--labels"]) == 2
    assert apply_transform.main(["-i", str(files / "p.csv"), "-o", "x.nii.gz", *transform]) == 2

    capsys.readouterr()
    asked = ["-o", str(files / "map.nii.gz"), "--json", str(files / "numbers.json")]
    assert jacobian.main([str(out / "a_0001_1Warp.nii.gz"), *asked]) == 0
    assert "fold_percent" in capsys.readouterr().out
    numbers = json.loads((files / "numbers.json").read_text())
    assert numbers == report["registered"][0]["jacobian"]
    determinant = sitk.ReadImage(str(files / "map.nii.gz"))
    assert sitk.GetArrayFromImage(determinant).min() == pytest.approx(numbers["smallest"], abs=0.5)


def test_labels_of_the_moving_scans_size_must_lie_on_it(files, phantoms, caplog):
    (scan,) = find_inputs(files / "atlas_0009.nii.gz", 1)
    path, label = files / "atlas_label.nii.gz", phantoms.phantom(0)[1]
    phantoms.write_volume(label, path, origin=(0.0, 5.0, 0.0))
    with pytest.raises(BadInputError, match=r"atlas_label.nii.gz: .* origin .*--allow_geometry_mismatch"):
        read_moving(scan, path)
    laid = read_moving(dataclasses.replace(scan, repairs=Repairs(allow_geometry_mismatch=True)), path).labels
    assert laid is not None
    assert laid.GetOrigin() == (0.0, 0.0, 0.0)
    assert np.array_equal(sitk.GetArrayFromImage(laid), label)
    assert "atlas_label.nii.gz: its grid differs" in caplog.text
    assert _register(files, "-i", str(files / "in")) == 3
    assert not list((files / "out").glob("*"))


def test_labels_of_another_size_may_have_a_grid_of_their_own(files, phantoms):
    (scan,) = find_inputs(files / "atlas_0009.nii.gz", 1)
    phantoms.write_volume(phantoms.phantom(0)[1][3:], files / "atlas_label.nii.gz", origin=(0.0, 0.0, 3.0))
    labels = read_moving(scan, files / "atlas_label.nii.gz").labels
    assert labels is not None
    assert labels.GetOrigin() == (0.0, 0.0, 3.0)


def test_two_scans_that_differ_in_their_last_number_are_registered_to_each_other(files, phantoms):
    for number, seed in (("0000", 3), ("0001", 4)):
        phantoms.write_volume(phantoms.phantom(seed)[0][0], files / f"NLST_0001_{number}.nii.gz")
    given = ["-fixed", str(files / "NLST_0001_0000.nii.gz"), "-moving", str(files / "NLST_0001_0001.nii.gz")]
    asked = [*given, "-o", str(files / "out"), "-device", "cpu", "--refine", "5", "--learn2reg"]
    assert register.main(asked) == 0
    assert (files / "out" / "disp_0001_0000_0001_0001.nii.gz").exists()
    transform, told = load_transform(files / "out" / "NLST_0001_Transform.json")
    assert told.moving_name == "NLST_0001_0001"
    assert np.abs(transform.field).max() > 0.5  # a scan is not registered to itself


@pytest.mark.parametrize("ending", [".mat", ".h5"])
def test_a_transform_that_the_disk_does_not_take_is_not_kept(tmp_path, monkeypatch, ending):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        with pytest.raises(ResourceError, match=rf"case{ending}: cannot be written \(File too large\)"):
            transform_files._write_transform(sitk.AffineTransform(3), tmp_path / f"case{ending}", 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_a_bad_fixed_scan_stops_no_other(files):
    (files / "in" / "c_0003_0000.nii.gz").write_bytes(b"")
    assert _register(files, "-i", str(files / "in"), "--refine", "1") == 6
    report = json.loads((files / "out" / "registration.json").read_text())
    assert [failure["case"] for failure in report["failures"]] == ["c_0003"]
    assert (files / "out" / "b_0002_1Warp.nii.gz").exists()


def test_a_bad_single_scan_is_refused(files):
    (files / "in" / "a_0001_0000.nii.gz").write_bytes(b"")
    assert _register(files, "-fixed", str(files / "in" / "a_0001_0000.nii.gz")) == 3
    assert not list((files / "out").glob("a_0001*"))


def test_a_sheared_scan_is_refused(files, capsys):
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[0, 1] = 0.1
    path = files / "sheared_0005.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), affine), path
    )
    assert _register(files, "-fixed", str(path)) == 3
    assert "not at right angles" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["-metric", "ssd"], ["--refine", "-1"], ["--l2r_short_names"], ["-f", "0", "-i", "x", "-fixed", "y"]],
)
def test_wrong_options_are_refused(files, arguments):
    assert _register(files, "-i", str(files / "in"), *arguments) == 2


def test_a_scalar_image_is_no_field(files, capsys):
    assert jacobian.main([str(files / "atlas_0009.nii.gz")]) == 3
    assert "intent code 1007" in capsys.readouterr().err


def test_scans_that_do_not_overlap_in_the_world_are_brought_together(files, phantoms, caplog):
    phantoms.write_volume(phantoms.phantom(5)[0][0], files / "far_0004.nii.gz", origin=(900.0, -700.0, 500.0))
    with caplog.at_level(logging.WARNING):
        assert _register(files, "-fixed", str(files / "far_0004.nii.gz"), "--refine", "5") == 0
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "out" / "far_0004_WarpedLabels.nii.gz")))
    assert _overlap(phantoms.phantom(5)[1], warped) > 0.7


@pytest.mark.parametrize(("metric", "warns"), [("lncc", True), ("mind", False)])
def test_a_scan_of_another_modality_is_told(files, phantoms, capsys, metric, warns):
    """Its tissue is inverted; the metric that is made for two modalities has nothing to complain of."""
    image = phantoms.phantom(5)[0][0]
    phantoms.write_volume(np.where(image > 0, 260 - image, 0), files / "other_0004.nii.gz")
    fixed = ["-fixed", str(files / "other_0004.nii.gz")]
    assert _register(files, *fixed, "--refine", "2", "-metric", metric) == 0
    assert ("another modality" in capsys.readouterr().err) is warns
    described = json.loads((files / "out" / "other_0004_Transform.json").read_text())
    assert described["likeness"] < UNLIKE


def test_scans_of_one_modality_bring_no_warning(files, capsys):
    assert _register(files, "-i", str(files / "in"), "--refine", "2") == 0
    assert "another modality" not in capsys.readouterr().err


def test_a_field_is_stored_as_itk_and_ants_expect_it(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    grid = GRIDS["flipped"]
    sitk.WriteImage(field_image(_smooth_field(grid, 1.0), grid), str(tmp_path / "w.nii.gz"))
    header = nibabel.load(tmp_path / "w.nii.gz").header
    assert header.get_data_shape() == (*grid.shape[::-1], 1, 3)
    assert int(header["intent_code"]) == 1007
    assert geometry_of(sitk.ReadImage(str(tmp_path / "w.nii.gz"))).shape == grid.shape
