from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.geometry import geometry_of, make_geometry
from rrlsam.preprocessing import affine
from rrlsam.preprocessing.affine import align, alignment_image, unmoved, without_padding


@pytest.fixture
def fixed(phantoms) -> sitk.Image:
    return alignment_image(phantoms.phantom(0, (24, 24, 24))[0], make_geometry((24, 24, 24), np.eye(4)))


def _placed(phantoms, world: np.ndarray) -> sitk.Image:
    """The phantom at rest, moved in the world by a rigid map."""
    return alignment_image(phantoms.phantom(0, (24, 24, 24))[0], make_geometry((24, 24, 24), world))


def _turn(degrees: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Rotation about the phantom's centre, then a shift."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = np.full(3, 11.5) - matrix[:3, :3] @ np.full(3, 11.5) + shift
    return matrix


def _about_the_origin(edge: int) -> sitk.Image:
    """A cube of 1 mm voxels."""
    image = sitk.Image([edge] * 3, sitk.sitkFloat32)
    image.SetOrigin([(1 - edge) / 2] * 3)
    return image


def _error_mm(found: affine.Alignment, true: np.ndarray) -> float:
    points = np.array(np.meshgrid([5, 18], [5, 18], [5, 18])).reshape(3, -1)
    points = np.vstack([points, np.ones(points.shape[1])])
    return float(np.linalg.norm((np.array(found.matrix) @ points - true @ points)[:3], axis=0).max())


@pytest.mark.parametrize(
    "world", [_turn(0, (3.0, -2.0, 1.0)), _turn(20), _turn(0, (300.0, 0.0, -200.0)), _turn(15, (300.0, 0.0, 0.0))]
)
def test_a_moved_scan_is_found_again(fixed, phantoms, world):
    found = align(fixed, _placed(phantoms, world))
    assert _error_mm(found, world) < 1.0
    assert found.score_after >= found.score_before


def test_a_scaled_scan_is_found_again(fixed, phantoms):
    world = np.diag([1.15, 1.15, 1.15, 1.0])
    found = align(fixed, _placed(phantoms, world))
    assert found.method == "affine"
    assert _error_mm(found, world) < 1.5


def test_a_deformed_scan_scores_higher_than_before(fixed, phantoms):
    other = phantoms.phantom(5, (24, 24, 24))[0][:, :, 4:]
    found = align(fixed, alignment_image(other, make_geometry(other.shape[1:], np.eye(4))))
    assert found.score_after > found.score_before


def test_the_same_scans_give_the_same_matrix(fixed, phantoms):
    other = _placed(phantoms, _turn(10, (2.0, 0.0, 0.0)))
    first = align(fixed, other)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with ThreadPoolExecutor(4) as pool:
        assert all(found == first for found in pool.map(lambda _: align(fixed, other), range(8)))
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads


def test_a_constant_scan_is_only_centred(fixed):
    empty = alignment_image(np.zeros((1, 20, 20, 20)), make_geometry((20, 20, 20), np.eye(4)))
    found = align(fixed, empty)
    assert found.method == "centre"
    assert np.allclose(np.array(found.matrix)[:3, :3], np.eye(3))
    middle = np.array(found.matrix) @ [*geometry_of(fixed).centre_mm, 1]
    assert np.abs(middle[:3] - geometry_of(empty).centre_mm).max() < 3


def test_an_implausible_map_is_not_used(fixed, phantoms, monkeypatch):
    monkeypatch.setattr(affine, "_refine", lambda *_: np.diag([3.0, 1.0, 1.0, 1.0]))
    monkeypatch.setattr(affine, "_score", lambda _f, _m, matrix: float(np.trace(matrix)))
    assert align(fixed, _placed(phantoms, _turn(5))).method == "centre"


@pytest.mark.parametrize(
    "linear", [np.diag([3.0, 1, 1]), np.diag([-1.0, 1, 1]), np.diag([0.5, 0.8, 0.8]), [[1, 2, 0], [0, 1, 0], [0, 0, 1]]]
)
def test_tears_mirrors_and_collapses_are_implausible(linear, fixed):
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    assert not affine._plausible(matrix, fixed, fixed)
    assert affine._plausible(np.eye(4), fixed, fixed)


def test_one_of_the_centres_lies_in_the_other_scan():
    """On grids of 10 and 30 mm about (0, 0, 0)."""
    small, large = (_about_the_origin(edge) for edge in (10, 30))
    for shift, plausible in [(14.0, True), (16.0, False), (-14.0, True), (-16.0, False)]:
        matrix = np.eye(4)
        matrix[0, 3] = shift
        assert affine._plausible(matrix, small, large) == plausible
        assert affine._plausible(matrix, large, small) == plausible
        assert not affine._plausible(matrix, small, small)


def test_an_alignment_image_is_coarse_but_never_finer_than_the_scan():
    array = np.random.default_rng(0).normal(size=(1, 20, 100, 130))
    image = alignment_image(array, make_geometry((20, 100, 130), np.diag([1.0, 1.0, 5.0, 1.0])))
    assert max(image.GetSize()) <= affine.MAX_VOXELS + 1
    assert image.GetSize()[2] == 20
    assert np.isclose(image.GetSpacing()[2], 5.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_scan_that_lies_right_already_is_aligned(phantoms, seed):
    """Nothing is better than the start, which is no failure."""
    image = phantoms.phantom(seed)[0]
    picture = alignment_image(image, make_geometry(image.shape[1:], np.eye(4)))
    found = align(picture, picture)
    assert found.method == "affine"
    np.testing.assert_allclose(np.array(found.matrix), np.eye(4), atol=0.05)


def test_a_scan_with_itself_is_unmoved(fixed):
    assert np.array_equal(unmoved(fixed).matrix, np.eye(4))


def test_the_circle_of_reconstruction_is_not_aligned_instead_of_the_body(ct_phantoms):
    """With its corners at -3024 and -2000 the two scans' circles correlate best where the bodies do not."""
    pictures = []
    for seed, case in ((2, "un_01"), (1, "un_00")):
        scan, _ = ct_phantoms.ct_phantom(seed, ct_phantoms.SCANNERS[case])
        pictures.append(alignment_image(sitk.GetArrayFromImage(scan)[None], geometry_of(scan)))
    found = align(*pictures)
    assert found.method == "affine"
    assert found.score_after > found.score_before + 0.1


def _body(seed: int, low: float, high: float) -> sitk.Image:
    """CT of a trunk from `low` to `high` mm: outline, lungs, liver, pelvis, legs, each a little elsewhere a seed."""
    random = np.random.default_rng(seed)
    spacing = 8.0
    z, y, x = np.meshgrid(np.arange(low, high, spacing), *[np.arange(-200, 200, spacing)] * 2, indexing="ij")
    half = 110 + 50 * np.exp(-(((z - 620) / 90) ** 2)) + 30 * np.exp(-(((z - 150) / 90) ** 2))
    image = np.where((x / half) ** 2 + (1.5 * y / half) ** 2 < 1, 40.0, -1000.0)
    organs = [
        ((75, 0, 560), (50, 65, 120), -850),
        ((-75, 0, 560), (50, 65, 120), -850),
        ((-60, 0, 430), (60, 55, 50), 250),
    ]
    organs += [((side, 0, 100), (20, 20, 120), 600) for side in (-70, 70)] + [((0, 20, 240), (40, 40, 40), -100)]
    for centre, radii, value in organs:
        middle = np.add(centre, random.normal(0, 4, 3))
        offsets = [(a - m) / r for a, m, r in zip((x, y, z), middle, radii, strict=True)]
        image[sum(offset**2 for offset in offsets) < 1] = value
    picture = sitk.GetImageFromArray((image + random.normal(0, 20, image.shape)).astype(np.float32))
    picture.SetSpacing([spacing] * 3)
    picture.SetOrigin((float(x.min()), float(y.min()), low))
    return picture


@pytest.mark.parametrize(
    ("fixed_ends", "moving_ends"),
    [((420, 700), (0, 700)), ((0, 700), (420, 700)), ((420, 700), (80, 700)), ((330, 700), (150, 560))],
)
@pytest.mark.parametrize("table_mm", [0.0, -400.0])
def test_a_part_of_the_body_is_found_in_a_scan_of_more(fixed_ends, moving_ends, table_mm):
    """Wherever the centres of the fields of view lie, and whatever the table's position says."""
    fixed, moving = _body(1, *fixed_ends), _body(2, *moving_ends)
    moving.SetOrigin((*moving.GetOrigin()[:2], moving.GetOrigin()[2] + table_mm))
    pictures = [alignment_image(sitk.GetArrayFromImage(image)[None], geometry_of(image)) for image in (fixed, moving)]
    found = align(*pictures)
    both = (max(fixed_ends[0], moving_ends[0]) + min(fixed_ends[1], moving_ends[1])) / 2
    there = np.array(found.matrix) @ (0.0, 0.0, both, 1.0)
    assert found.method == "affine"
    np.testing.assert_allclose(there[:3], (0.0, 0.0, both + table_mm), atol=30)


@pytest.mark.parametrize("values", [[-1024, -1024, 0, 40], [-3024, -3024, -3024, -3024], [0, 0, 5, 9]])
def test_what_is_no_padding_stays(values):
    channel = np.array(values, np.float32).reshape(1, 2, 2)
    assert without_padding(channel).tolist() == channel.tolist()


def test_a_few_dark_voxels_are_no_padding():
    channel = np.zeros((10, 20, 20), np.float32)
    channel[0, 0, :3] = -3024
    assert without_padding(channel).min() == -3024


def test_padding_becomes_the_least_true_value():
    channel = np.array([-3024, -3024, -1003, 40], np.float32).reshape(1, 2, 2)
    assert without_padding(channel).ravel().tolist() == [-1003, -1003, -1003, 40]
