"""Where structures are a small part of their atlas, scans are aligned by what lies about these."""

from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from rrlsam.geometry import Geometry, geometry_of, make_geometry
from rrlsam.preprocessing import affine
from rrlsam.preprocessing.affine import align, alignment_image, improved_affine
from rrlsam.preprocessing.nearer_looks import Target, align_closely, make_target

SHAPE = (72, 80, 88)
ORGAN = (44, 50, 34)
"""Its middle, axis order z, y, x."""
WORLD = np.diag([2.0, 1.5, 1.5, 1.0])
GRID = make_geometry(SHAPE, WORLD)


def body(shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A body (1, z, y, x) with an organ that is moved within it by some voxels (z, y, x)."""
    z, y, x = np.indices(SHAPE, dtype=np.float32)
    image = 100.0 * (((z - 36) / 34) ** 2 + ((y - 40) / 35) ** 2 + ((x - 44) / 40) ** 2 < 1)
    image += 40.0 * (((z - 30) / 14) ** 2 + ((y - 30) / 12) ** 2 + ((x - 62) / 10) ** 2 < 1)
    middle = [m + s for m, s in zip(ORGAN, shift, strict=True)]
    for radii, step in (((7, 6, 5), 60.0), ((4, 3, 2), 50.0)):
        image += step * (sum(((a - m) / r) ** 2 for a, m, r in zip((z, y, x), middle, radii, strict=True)) < 1)
    noise = np.random.default_rng(abs(sum(shift))).normal(0, 2, SHAPE)
    return (gaussian_filter(image, 0.8) + noise)[None].astype(np.float32)


def box(margin: int, organ: tuple[int, int, int] = ORGAN) -> tuple[tuple[slice, ...], Geometry]:
    start, stop = [m - margin for m in organ], [m + margin for m in organ]
    return (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True))), GRID.box(start, stop)


def target(margin: int = 12, whole: sitk.Image | None = None) -> Target:
    cut, grid = box(margin)
    whole = alignment_image(body(), GRID) if whole is None else whole
    return make_target(whole, body()[cut], grid, lambda array: array)


def miss_mm(matrix: object, shift: tuple[int, int, int], world: np.ndarray = WORLD) -> float:
    """How far from where it lies the organ's middle is thought to lie."""
    here = WORLD @ [*ORGAN[::-1], 1.0]
    there = world @ [*(m + s for m, s in zip(ORGAN[::-1], shift[::-1], strict=True)), 1.0]
    return float(np.linalg.norm((np.array(matrix) @ here - there)[:3]))


@pytest.mark.parametrize("shift", [(4, -3, 3), (-5, 4, 0), (0, 0, 5)])
def test_an_organ_that_lies_elsewhere_in_its_body_is_found(shift):
    scan = body(shift)
    by_body = align(alignment_image(body(), GRID), alignment_image(scan, GRID))
    found = align_closely(target(), scan, GRID)
    assert miss_mm(by_body.matrix, shift) > 4.0
    assert miss_mm(found.matrix, shift) < 1.0
    assert (found.method, found.score_after) == (by_body.method, by_body.score_after)


def test_a_scan_in_another_world_and_cut_off_at_the_organ_is_aligned_too():
    turned = Rotation.from_euler("z", 8, degrees=True).as_matrix()
    world = WORLD.copy()
    world[:3, :3] = turned @ WORLD[:3, :3]
    world[:3, 3] = 300.0, -40.0, 7.0
    shift = (3, 3, -2)
    cut = body(shift)[:, :, :, 14:]
    elsewhere = make_geometry(cut.shape[1:], world)
    found = align_closely(target(), cut, elsewhere)
    assert miss_mm(found.matrix, (3, 3, -2 - 14), world) < 1.5


def test_each_look_is_half_as_wide_as_the_one_before_and_the_last_is_at_the_box():
    sizes = [geometry_of(look.picture).extent_mm for look in target(margin=8).looks]
    assert len(sizes) == 3
    for wide, near in pairwise(sizes):
        assert all(1.0 < a / b < 2.5 for a, b in zip(wide, near, strict=True))
    assert sizes[-1] == pytest.approx(box(8)[1].extent_mm)


def test_voxels_beyond_the_atlas_are_not_looked_at():
    edge = GRID.box((32, 38, -4), (56, 62, 20))
    made = make_target(alignment_image(body(), GRID), np.zeros((1, *edge.shape), np.float32), edge, lambda array: array)
    assert geometry_of(made.looks[-1].picture).extent_mm[2] < 22 * WORLD[0, 0]


def test_the_same_scan_gives_the_same_matrix():
    scan = body((2, 2, 2))
    assert align_closely(target(), scan, GRID) == align_closely(target(), scan, GRID)


def test_structures_that_fill_their_atlas_are_looked_at_as_a_whole_only():
    whole, scan = alignment_image(body(), GRID), body((3, 0, 0))
    filling = make_target(whole, body(), GRID, lambda array: array)
    assert filling.looks == ()
    assert align_closely(filling, scan, GRID) == align(whole, alignment_image(scan, GRID))


def test_a_box_of_few_voxels_tells_too_little():
    assert target(margin=3).looks == ()


def test_a_scan_that_was_only_shifted_is_left_so():
    empty = np.zeros((1, *SHAPE), np.float32)
    found = align_closely(target(), empty, GRID)
    assert found.method == "centre"
    assert found == align(alignment_image(body(), GRID), alignment_image(empty, GRID))


def test_a_near_look_sees_windowed_intensities():
    cut, grid = box(12)
    seen = []

    def window(array: np.ndarray) -> np.ndarray:
        seen.append(array.shape)
        return np.clip(array, 90.0, 220.0)

    made = make_target(alignment_image(body(), GRID), window(body()[cut]), grid, window)
    assert miss_mm(align_closely(made, body((4, -3, 3)), GRID).matrix, (4, -3, 3)) < 1.0
    assert len(seen) == 2
    assert all(part < whole for part, whole in zip(seen[1][1:], SHAPE, strict=True))


def test_what_is_not_better_is_not_taken():
    picture = alignment_image(body(), GRID)
    nothing = sitk.Image(picture.GetSize(), sitk.sitkFloat32)
    askew = np.diag([1.0, 1.1, 1.0, 1.0])
    assert np.array_equal(improved_affine(picture, nothing, askew), askew)
    beside = np.eye(4)
    beside[0, 3] = 1000.0
    assert np.array_equal(improved_affine(picture, picture, beside), beside)
    assert not np.array_equal(improved_affine(picture, picture, askew), askew)


@pytest.mark.parametrize("measure", ["_score", "_likeness", "_overlap"])
def test_what_is_found_has_to_be_better_by_every_measure(monkeypatch, measure):
    picture, askew = alignment_image(body(), GRID), np.diag([1.0, 1.1, 1.0, 1.0])
    values = iter((0.5, 0.4))  # before and after
    monkeypatch.setattr(affine, measure, lambda *_: next(values))
    assert np.array_equal(improved_affine(picture, picture, askew), askew)


def test_a_nearer_look_does_not_go_to_another_place():
    picture, far = alignment_image(body(), GRID), np.eye(4)
    far[2, 3] = 0.7 * max(geometry_of(picture).extent_mm) / 2
    assert np.array_equal(improved_affine(picture, picture, far), far)
