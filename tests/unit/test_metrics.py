import math

import numpy as np
import pytest

from rrlsam.evaluation.metrics import confusion, dice, surface_distances, volume_mm3

ONE = (1.0, 1.0, 1.0)


def cube(start: tuple[int, int, int], edge: int = 6, shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + edge) for s in start)] = True
    return mask


def ball(radius: float, n: int = 41) -> np.ndarray:
    grid = np.indices((n, n, n)) - n // 2
    return (grid**2).sum(0) <= radius**2


def test_confusion_of_half_overlapping_cubes():
    counts = confusion(cube((5, 5, 5)), cube((8, 5, 5)))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (108, 108, 108, 8000 - 324)
    assert counts.dice == pytest.approx(0.5)
    assert counts.iou == pytest.approx(1 / 3)


def test_overlap_of_two_empty_masks_is_undefined():
    empty = np.zeros((4, 4, 4), dtype=bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(confusion(empty, empty).iou)
    assert dice(empty, ~empty) == confusion(~empty, empty).iou == 0


def test_a_shift_along_a_coarse_axis_counts_in_millimetres():
    reference, prediction = cube((5, 5, 5)), cube((6, 5, 5))
    isotropic, distances = (surface_distances(reference, prediction, spacing) for spacing in (ONE, (3.0, 1.0, 1.0)))
    assert isotropic.hd95_mm == pytest.approx(1.0)
    assert isotropic.nsd() == 1
    assert distances.hd95_mm == pytest.approx(3.0)
    assert sorted(set(distances.of_reference.tolist())) == [0, 1, 2, 3]
    assert distances.of_reference.size == 6**3 - 4**3


def test_distances_do_not_depend_on_the_empty_space_around():
    small, large = (10, 9, 8), (30, 31, 32)
    found = [
        surface_distances(cube((2, 2, 2), 4, n), cube((3, 4, 2), 4, n), (2.0, 1.5, 1.0)).hd95_mm for n in (small, large)
    ]
    assert found[0] == found[1] > 0


def test_distances_agree_with_brute_force():
    spacing = np.array((2.0, 0.5, 1.0))
    reference, prediction = cube((2, 2, 2), 4, (10, 10, 10)), cube((0, 3, 5), 5, (10, 10, 10))

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        shifted = [np.roll(padded, s, a)[1:-1, 1:-1, 1:-1] for s in (-1, 1) for a in range(3)]
        return np.argwhere(mask & ~np.logical_and.reduce(shifted)) * spacing

    pairs = np.linalg.norm(surface(reference)[:, None] - surface(prediction)[None], axis=2)
    found = surface_distances(reference, prediction, spacing.tolist())
    np.testing.assert_allclose(found.of_reference, pairs.min(1))
    np.testing.assert_allclose(found.of_prediction, pairs.min(0))


def test_concentric_balls_are_their_radii_apart():
    inner, outer = ball(10), ball(14)
    distances = surface_distances(inner, outer, ONE)
    assert distances.hd95_mm == pytest.approx(4, abs=0.6)
    assert distances.nsd(tolerance_mm=2.0) == 0
    assert distances.nsd(tolerance_mm=6.0) == 1
    assert dice(inner, outer) == pytest.approx(2 * 10**3 / (10**3 + 14**3), rel=0.02)


@pytest.mark.parametrize(("edge", "expected"), [(1, 0.0), (3, 8.0)])
def test_hd95_is_the_larger_of_the_two_directed_percentiles(edge, expected):
    """A far piece of the prediction counts where it is more than a twentieth of its surface; the other way all is 0."""
    reference = cube((2, 2, 2), edge=8, shape=(12, 12, 30))
    prediction = reference.copy()
    prediction[4 : 4 + edge, 4 : 4 + edge, 17 : 17 + edge] = True
    distances = surface_distances(reference, prediction, ONE)
    assert distances.of_reference.max() == 0
    assert distances.of_prediction.max() == 8 + edge - 1
    assert (distances.of_prediction > 0).mean() == pytest.approx(0.05, abs=0.05)
    assert distances.hd95_mm == pytest.approx(expected, abs=2) if expected else distances.hd95_mm == 0


def test_surface_metrics_of_empty_masks():
    full, empty = cube((5, 5, 5)), np.zeros((20, 20, 20), dtype=bool)
    neither = surface_distances(empty, empty, ONE)
    assert math.isnan(neither.hd95_mm)
    assert math.isnan(neither.nsd())
    for one in (surface_distances(full, empty, ONE), surface_distances(empty, full, ONE)):
        assert (one.hd95_mm, one.nsd()) == (math.inf, 0)


def test_voxels_that_do_not_count_change_nothing():
    reference, prediction = cube((5, 5, 5)), cube((5, 5, 5))
    prediction[0:3, 0:3, 0:3] = True
    valid = np.ones_like(reference)
    valid[:4] = False
    assert dice(reference, prediction) < 1
    assert dice(reference, prediction, valid) == 1
    assert confusion(reference, prediction, valid).tn == 16 * 400 - 216
    assert surface_distances(reference, prediction, ONE, valid).hd95_mm == 0
    assert volume_mm3(prediction, (2.0, 1.0, 1.0), valid) == 432


def test_the_border_of_what_counts_is_no_surface():
    reference = cube((5, 5, 5))
    valid = np.ones_like(reference)
    valid[8:] = False
    assert surface_distances(reference, reference, ONE, valid).of_reference.size == 36 + 2 * 20


def test_the_surface_of_a_mask_that_ends_where_nobody_labelled_is_unknown():
    """One wrong voxel elsewhere does not make it infinitely far away."""
    reference = cube((5, 5, 5))
    valid = reference | cube((0, 0, 0), edge=3)
    prediction = reference.copy()
    prediction[1, 1, 1] = True
    assert dice(reference, prediction, valid) > 0.99
    distances = surface_distances(reference, prediction, ONE, valid)
    assert math.isnan(distances.hd95_mm)
    assert math.isnan(distances.nsd())
    missed = surface_distances(np.zeros_like(reference), prediction, ONE, valid)
    assert (missed.hd95_mm, missed.nsd()) == (math.inf, 0)


def test_masks_of_other_shapes_or_kinds_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        dice(np.zeros((3, 3, 3), dtype=bool), np.zeros((3, 3, 4), dtype=bool))
    with pytest.raises(ValueError, match="boolean"):
        dice(np.zeros((3, 3, 3), dtype=bool), np.zeros((3, 3, 3), dtype=np.uint8))
