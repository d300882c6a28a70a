"""nnU-Net's rules against its own plans (docs: nnunetv2 2.8.1, run) and against values worked out by hand."""

import importlib

import numpy as np
import pytest

rules = importlib.import_module("rrlsam.planners.topology")

NNUNET_PLANS = {
    "hippocampus": ((1.0, 1.0, 1.0), (36, 50, 35), (40, 56, 40), (3, 3, 3), 0),
    "brats": ((1.0, 1.0, 1.0), (128, 128, 128), (128, 128, 128), (5, 5, 5), 0),
    "acdc": ((10.0, 1.5625, 1.5625), (9, 237, 208), (10, 256, 224), (1, 5, 5), 2),
    "liver": ((1.0, 0.7676, 0.7676), (128, 128, 128), (128, 128, 128), (5, 5, 5), 0),
    "prostate": ((3.6, 0.625, 0.625), (20, 320, 256), (20, 320, 256), (2, 6, 6), 2),
    "tiny_ct": ((1.0, 1.0, 1.0), (64, 64, 64), (64, 64, 64), (4, 4, 4), 0),
}


@pytest.mark.parametrize("name", sorted(NNUNET_PLANS))
def test_patch_and_pools_are_those_of_nnunet(name: str):
    spacing, raw, padded, pools, _ = NNUNET_PLANS[name]
    made = rules.topology(spacing, raw, max_levels=7)
    assert made.patch == padded
    assert tuple(np.log2(rules.total_stride(made.strides)).astype(int)) == pools
    assert made.strides[0] == (1, 1, 1)


@pytest.mark.parametrize("name", sorted(NNUNET_PLANS))
def test_a_coarse_axis_is_not_convolved_at_first(name: str):
    spacing, raw, *_, flat = NNUNET_PLANS[name]
    kernels = rules.topology(spacing, raw, max_levels=7).kernels
    assert kernels == ((1, 3, 3),) * flat + ((3, 3, 3),) * (len(kernels) - flat)


def test_acdc_pools_its_coarse_axis_once_in_the_fourth_stage():
    strides = rules.topology((10.0, 1.5625, 1.5625), (9, 237, 208)).strides
    assert [stride[0] for stride in strides] == [1, 1, 1, 2, 1, 1]


def test_a_single_axis_is_pooled_from_12_voxels_on():
    assert len(rules.topology((9.0, 9.0, 1.0), (4, 4, 12)).strides) == 2
    assert len(rules.topology((9.0, 9.0, 1.0), (4, 4, 11)).strides) == 1


def test_the_bottleneck_is_convolved_along_every_axis_however_coarse():
    assert rules.topology((9.0, 1.0, 1.0), (4, 16, 16)).kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_with_fewer_levels_the_patch_is_padded_to_fewer_pools():
    made = rules.topology((1.0, 1.0, 1.0), (36, 50, 35), max_levels=3)
    assert made.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert made.patch == (36, 52, 36)
    assert len(made.kernels) == 3


def test_six_levels_are_the_most_unless_told_otherwise():
    assert len(rules.topology((3.6, 0.625, 0.625), (20, 320, 256)).strides) == 6


def test_the_target_spacing_is_the_median_of_each_axis():
    spacings = [(1.0, 0.5, 0.7), (3.0, 0.6, 0.7), (2.0, 0.9, 0.7)]
    assert rules.target_spacing(spacings, [(100, 100, 100)] * 3) == (2.0, 0.6, 0.7)


SLICES = [2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 6.0]


def test_thick_slices_get_the_10th_percentile():
    # Eleven values: the 10th percentile is the second smallest.
    assert rules.target_spacing([(z, 1.0, 1.0) for z in SLICES], [(20, 200, 200)] * 11) == (4.0, 1.0, 1.0)


def test_the_coarse_axis_is_found_wherever_it_is():
    assert rules.target_spacing([(1.0, z, 1.0) for z in SLICES], [(200, 20, 200)] * 11) == (1.0, 4.0, 1.0)


def test_thick_slices_never_become_finer_than_the_other_axes():
    spacings = [(0.5, 1.0, 0.8)] * 3 + [(5.0, 1.0, 0.8)] * 7
    spacing = rules.target_spacing(spacings, [(20, 200, 200)] * 10)
    assert spacing == pytest.approx((1.00001, 1.0, 0.8), abs=1e-9)


def test_many_slices_keep_the_median():
    assert rules.target_spacing([(z, 1.0, 1.0) for z in SLICES], [(67, 200, 200)] * 11) == (5.0, 1.0, 1.0)


def test_three_times_coarser_is_not_yet_thick():
    spacings = [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (3.0, 1.0, 1.0)]
    assert rules.target_spacing(spacings, [(20, 200, 200)] * 3) == (3.0, 1.0, 1.0)


def test_the_start_patch_is_a_cube_in_millimetres():
    # Edge (256^3 * 8 * 1 * 1)^(1/3) = 512 mm.
    assert rules.start_patch((8.0, 1.0, 1.0), (900, 900, 900)) == (64, 512, 512)


def test_the_start_patch_is_clipped_to_the_image():
    assert rules.start_patch((1.0, 1.0, 1.0), (138, 300, 170)) == (138, 256, 170)


def test_coarsening_starts_with_axes_more_than_twice_finer():
    assert rules.coarser_spacing((5.0, 1.0, 2.5)) == (5.0, 1.03, 2.5)
    assert rules.coarser_spacing((2.0, 1.0, 1.0)) == (2.06, 1.03, 1.03)


@pytest.mark.parametrize(
    ("channel", "method"),
    [("CT", "ct"), ("noNorm", "nonorm"), ("rescale_to_0_1", "rescale_to_0_1"), ("RGB_to_0_1", "rgb_to_0_1")],
)
def test_a_channel_named_as_a_method_is_normalised_by_it(channel: str, method: str):
    assert rules.normalization(channel) == method


@pytest.mark.parametrize("channel", ["T1", "zscore", "CT contrast", "rescale_to_0_1 "])
def test_any_other_channel_is_z_scored(channel: str):
    assert rules.normalization(channel) == "zscore"
