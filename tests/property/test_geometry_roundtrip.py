"""A scan goes to the stored grid and back to its own: the grid is exact, labels stay within a voxel's shell."""

from itertools import permutations, product

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion, generate_binary_structure

from rrlsam.geometry import geometry_of, to_sitk
from rrlsam.plan import DataPlan
from rrlsam.preprocessing.preprocess import prepare_image
from rrlsam.scans.volume import same_grid, to_canonical

AXIS_CODES = [np.diag(signs)[:, order] for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
"""All 48 ways in which axes can run, left-handed ones included."""

SPACING = st.integers(30, 500).map(lambda n: n / 100)
ANGLE = st.integers(-150, 150).map(lambda n: n / 1000)
GRIDS = st.fixed_dictionaries(
    {
        "code": st.sampled_from(AXIS_CODES),
        "angles": st.tuples(ANGLE, ANGLE, ANGLE),
        "spacing": st.tuples(SPACING, SPACING, SPACING),
        "shape": st.tuples(*[st.integers(4, 40)] * 3),
        "origin": st.tuples(*[st.integers(-500, 500).map(float)] * 3),
    }
)


def _image(code, angles, spacing, shape, origin) -> sitk.Image:
    """A bright ellipsoid, nowhere zero, on the given grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = np.sum(np.square(axes), axis=0) < 0.5
    image = sitk.GetImageFromArray(np.where(inside, 2.0, 1.0).astype(np.float32))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*angles)
    image.SetDirection((np.array(turn.GetMatrix()).reshape(3, 3) @ code).ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def _sampled(mask: sitk.Image, grid: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)) > 0


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS)
def test_turning_keeps_every_voxel_in_its_place(grid):
    image = _image(**grid)
    turned = to_canonical(image)
    assert sorted(turned.GetSize()) == sorted(image.GetSize())
    back = _sampled(turned > 1.5, image)
    assert np.array_equal(back, sitk.GetArrayFromImage(image) > 1.5)


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, factors=st.tuples(*[st.floats(0.5, 1.6)] * 3))
def test_labels_come_back_within_a_voxels_shell(grid, factors):
    image = _image(**grid)
    spacing = np.array(geometry_of(to_canonical(image)).spacing_mm) * factors
    data = DataPlan(spacing_mm=tuple(spacing.tolist()), normalization=("nonorm",), normalize_inside_nonzero=(False,))
    prepared = prepare_image(image, data)
    assert np.allclose(prepared.stored.centre_mm, geometry_of(image).centre_mm, atol=1e-6)

    label: np.ndarray = sitk.GetArrayFromImage(image) > 1.5
    on_stored = to_sitk(
        _sampled(image > 1.5, to_sitk(prepared.array[0], prepared.stored)).astype(np.uint8), prepared.stored
    )
    back = _sampled(on_stored, image)
    ball = generate_binary_structure(3, 3)
    assert not (back & np.logical_not(binary_dilation(label, ball))).any()
    assert not (binary_erosion(label, ball) & np.logical_not(back)).any()
    restored = geometry_of(to_sitk(back.astype(np.uint8), geometry_of(image)))
    assert same_grid(restored, geometry_of(image))
