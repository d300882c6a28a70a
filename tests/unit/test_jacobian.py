import itertools

import numpy as np
import pytest

from rrlsam.nets import jacobian
from rrlsam.nets.jacobian import fold_percent, folded_voxels, jacobian_determinant, jacobian_numbers


def brute_force_fold_percent(displacement: np.ndarray) -> float:
    def place(p: np.ndarray) -> np.ndarray:
        return p + displacement[:, p[2], p[1], p[0]]

    eye = np.eye(3, dtype=int)
    cuts = [[s * e for s, e in zip(signs, eye, strict=True)] for signs in itertools.product((1, -1), repeat=3)]
    for sign in (1, -1):
        cuts.append([sign * (eye[0] + eye[1]), sign * (eye[1] + eye[2]), sign * (eye[0] + eye[2])])
    z, y, x = displacement.shape[1:]
    folds = []
    for point in itertools.product(range(1, x - 1), range(1, y - 1), range(1, z - 1)):
        p = np.array(point)
        determinants = [
            np.linalg.det([place(p + s) - place(p) for s in cut]) * np.sign(np.linalg.det(cut)) for cut in cuts
        ]
        folds.append(min(determinants) <= 0)
    return 100 * float(np.mean(folds))


def test_fold_percent_agrees_with_brute_force():
    random = np.random.default_rng(0)
    for scale in (0.15, 0.3):
        field = random.normal(0, scale, (3, 21, 6, 5))
        percent = brute_force_fold_percent(field)
        assert 0 < percent < 100
        assert fold_percent(field) == pytest.approx(percent)


def test_a_checkerboard_that_central_differences_miss_is_found():
    z, y, x = np.indices((8, 8, 8))
    field = np.zeros((3, 8, 8, 8), dtype=np.float32)
    field[0] = 0.6 * (-1.0) ** (x + y + z)
    central = field[0, :, :, 2:] - field[0, :, :, :-2]
    assert np.abs(central).max() == 0
    assert fold_percent(field) == 100
    assert fold_percent(field * 0.5) == 0


def test_smooth_maps_do_not_fold_and_mirrors_do():
    z, y, x = np.indices((6, 6, 6)).astype(np.float64)
    assert fold_percent(np.zeros((3, 6, 6, 6))) == 0
    assert fold_percent(np.stack([0.5 * x, -0.5 * y, 0.3 * x])) == 0
    assert fold_percent(np.stack([-2 * x, 0 * y, 0 * z])) == 100
    assert fold_percent(np.full((3, 6, 6, 6), np.nan)) == 100


def test_a_displacement_without_interior_is_refused():
    with pytest.raises(ValueError, match="at least 3 voxels"):
        fold_percent(np.zeros((3, 2, 5, 5)))


def test_a_checkerboard_folds_though_central_differences_miss_it():
    board = np.indices((8, 8, 8)).sum(0) % 2
    numbers = jacobian_numbers(np.stack([0.6 * (2.0 * board - 1)] * 3))
    assert numbers.fold_percent > 50
    assert numbers.fold_percent_central == 0


def test_a_mirrored_field_folds_everywhere():
    x = np.indices((8, 8, 8))[2].astype(float)
    numbers = jacobian_numbers(np.stack([-2 * x, 0 * x, 0 * x]))
    assert numbers.fold_percent == numbers.fold_percent_central == 100
    assert numbers.sdlogj_l2r == pytest.approx(0, abs=1e-6)
    assert folded_voxels(np.stack([-2 * x, 0 * x, 0 * x]))[1:-1, 1:-1, 1:-1].all()


def test_determinants_are_those_of_the_whole_field_however_it_is_cut(monkeypatch):
    displacement = np.random.default_rng(0).normal(0, 0.2, (3, 21, 6, 7)).astype(np.float32)
    whole = jacobian_determinant(displacement)
    for planes in (1, 5, 20, 21, 40):
        monkeypatch.setattr(jacobian, "_SLAB", planes)
        np.testing.assert_array_equal(jacobian_determinant(displacement), whole)
    matrices = np.stack([np.stack(np.gradient(part.astype(np.float64))[::-1]) for part in displacement])
    expected = np.linalg.det((matrices + np.eye(3).reshape(3, 3, 1, 1, 1)).transpose(2, 3, 4, 0, 1))
    np.testing.assert_allclose(whole, expected, atol=1e-12)
