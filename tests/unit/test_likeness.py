"""Whether two registered scans look like scans of one kind."""

import numpy as np
import pytest

from rrlsam.scans.likeness import UNLIKE, likeness

SHAPE = (12, 14, 16)
EVERYWHERE = np.ones(SHAPE, bool)


@pytest.fixture
def scan() -> np.ndarray:
    """Smooth tissue of 20 to 100 in a box, air around it."""
    z, y, x = np.indices(SHAPE)
    tissue = 60 + 40 * np.sin(z / 2.0) * np.cos(y / 3.0) * np.cos(x / 2.0)
    body = np.zeros(SHAPE, bool)
    body[2:-2, 2:-2, 2:-2] = True
    return np.where(body, tissue, 0.0)


def _noisy(image: np.ndarray) -> np.ndarray:
    return image + np.random.default_rng(0).normal(0, 5, SHAPE) * (image > 0)


def test_scans_of_one_kind_are_alike_at_any_scale(scan):
    found = likeness(scan, 3.0 * _noisy(scan) + 100.0, EVERYWHERE)
    assert found is not None
    assert found > 0.9


def test_inverted_tissue_is_unlike_although_the_air_is_dark_in_both(scan):
    inverted = np.where(scan > 0, 120.0 - scan, 0.0)
    assert np.corrcoef(scan.ravel(), inverted.ravel())[0, 1] > UNLIKE, "the air alone would make them alike"
    found = likeness(scan, _noisy(inverted), EVERYWHERE)
    assert found is not None
    assert found < UNLIKE


def test_only_where_both_have_data_counts(scan):
    inside = EVERYWHERE.copy()
    inside[:, :, 9:] = False
    broken = scan.copy()
    broken[:, :, 9:] = 100.0 - broken[:, :, 9:]
    assert likeness(scan, broken, inside) == pytest.approx(1.0)


@pytest.mark.parametrize("inside", [EVERYWHERE & False, EVERYWHERE], ids=["no overlap", "nothing but one intensity"])
def test_too_little_to_compare_is_told(inside):
    assert likeness(np.ones(SHAPE), np.ones(SHAPE), inside) is None
