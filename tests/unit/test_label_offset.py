"""A label that lies beside its image is found out; one that lies on it, or has nothing to do with it, is left alone."""

import numpy as np
import pytest

from rrlsam.planning.label_offset import LARGEST_SHIFT_VOX, LabelOffset, find_label_offset, move_label

SHAPE = (30, 34, 28)


def _ellipsoids() -> np.ndarray:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = (z / 0.5) ** 2 + (y / 0.6) ** 2 + (x / 0.4) ** 2
    return (radius < 1).astype(np.uint8) + (radius < 0.3)


def _scan(label: np.ndarray, seed: int, noise: float = 0.5) -> np.ndarray:
    clean = np.array([0.0, 1.0, 2.0])[label]
    return (clean + np.random.default_rng(seed).normal(0, noise, SHAPE)).astype(np.float32)[None]


@pytest.mark.parametrize("shift", [(1, 0, 0), (-1, 1, 0), (1, 1, -1), (0, 2, 1)])
def test_a_displaced_label_is_moved_back(shift):
    """Moving the label aside is undone, exactly."""
    truth = _ellipsoids()
    found = find_label_offset(move_label(truth, shift), _scan(truth, 0), n_classes=3)
    z, y, x = shift
    assert found.shift_vox == (-z, -y, -x)
    assert found.gain > 1.2


@pytest.mark.parametrize("seed", range(5))
def test_a_label_on_its_image_is_left_alone(seed):
    """No shift for a label in its place, whatever the noise."""
    truth = _ellipsoids()
    assert find_label_offset(truth, _scan(truth, seed), n_classes=3) == LabelOffset()


@pytest.mark.parametrize("seed", range(5))
def test_chance_moves_nothing(seed):
    """An image that shows nothing of the structures gives no reason to move the label."""
    noise = np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)
    assert find_label_offset(_ellipsoids(), noise, n_classes=3) == LabelOffset()


def test_a_label_far_away_is_not_inexact_but_wrong():
    """Beyond the largest shift nothing is changed."""
    truth = _ellipsoids()
    moved = move_label(truth, (0, LARGEST_SHIFT_VOX + 2, 0))
    assert find_label_offset(moved, _scan(truth, 0, noise=0.2), n_classes=3) == LabelOffset()


def test_several_channels_and_ignored_voxels():
    """One telling channel is enough; voxels with the ignore value count for nothing."""
    truth = _ellipsoids()
    moved = move_label(truth, (1, 0, 0))
    moved[:, 26:, :] = 3
    blank = np.zeros((1, *SHAPE), np.float32)
    found = find_label_offset(moved, np.concatenate([blank, _scan(truth, 1, noise=0.3)]), n_classes=3)
    assert found.shift_vox == (-1, 0, 0)


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 20, 20), (5, 5, 5)])
def test_thin_volumes_have_no_room(shape):
    """Where there is no room to move, nothing moves."""
    label = np.ones(shape, np.uint8)
    image = np.random.default_rng(0).normal(size=(1, *shape))
    assert find_label_offset(label, image, n_classes=2) == LabelOffset()


def test_moving_keeps_the_voxels():
    """What is moved out is lost, what comes in is background; there and back is the identity inside."""
    label = np.arange(1, 28).reshape(3, 3, 3)
    moved = move_label(label, (1, 0, -1))
    assert moved[1:, :, :-1].tolist() == label[:-1, :, 1:].tolist()
    assert not moved[0].any()
    assert not moved[:, :, -1].any()
    assert move_label(label, (0, 0, 0)).tolist() == label.tolist()
