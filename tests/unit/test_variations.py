"""The benchmark's changed scans: image and label stay together, and each scan is always changed alike."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation

from rrlsam.geometry import geometry_of

script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "variations.py"))
KINDS = script["KINDS"]


def scan() -> tuple[sitk.Image, sitk.Image]:
    """A bright block in a body in air, and the block's label."""
    label, body = np.zeros((2, 30, 36, 32), dtype=np.uint8)
    label[9:18, 12:24, 10:19] = 1
    body[3:27, 4:32, 4:28] = 1
    volumes = sitk.GetImageFromArray(40.0 * body.astype(np.float32) + 60.0 * label), sitk.GetImageFromArray(label)
    for volume in volumes:
        volume.SetSpacing((1.0, 1.5, 2.0))
        volume.SetOrigin((-7.0, 3.0, 11.0))
    return volumes


def changed(kind: str, seed: int = 1) -> tuple[sitk.Image, sitk.Image]:
    return KINDS[kind](*scan(), np.random.default_rng(seed))


def centre_mm(volume: sitk.Image, weight: np.ndarray) -> np.ndarray:
    """World position of a weight's centre of mass."""
    index = [np.average(positions, weights=weight) for positions in np.indices(weight.shape)][::-1]
    return (geometry_of(volume).matrix @ np.array([*index, 1.0]))[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_label_stay_together(kind):
    image, label = changed(kind)
    np.testing.assert_allclose(geometry_of(image).matrix, geometry_of(label).matrix)
    assert image.GetSize() == label.GetSize()
    array, block = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label) > 0
    around = np.logical_and(binary_dilation(block, iterations=2), ~block)
    inside, outside = array[block].mean(), array[around].mean()
    assert (inside < outside) == (kind == "small")
    as_expected = np.abs(array - inside) < np.abs(array - outside)
    assert as_expected[block].mean() > 0.85
    assert as_expected[around].mean() < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_is_always_changed_alike(kind):
    first, again, other = (sitk.GetArrayFromImage(changed(kind, seed)[0]) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_slices_lie_in_the_middle_of_those_they_are_made_of():
    _, label = scan()
    thick = changed("thick")[1]
    assert thick.GetSpacing() == pytest.approx((1.0, 1.5, 6.0))
    before, after = (centre_mm(v, sitk.GetArrayFromImage(v).astype(float)) for v in (label, thick))
    assert np.abs(before - after)[2] <= 2.0


def test_a_mouse_is_small():
    image, _ = scan()
    assert np.allclose(np.array(changed("small")[0].GetSpacing()), 0.06 * np.array(image.GetSpacing()))


def test_a_part_is_cut_off_at_one_end_at_most():
    whole, part = geometry_of(scan()[0]), geometry_of(changed("cropped")[0])
    assert all(0.74 * n <= m <= n for n, m in zip(whole.shape, part.shape, strict=True))
    assert part.shape != whole.shape
