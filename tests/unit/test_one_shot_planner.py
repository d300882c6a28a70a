"""What the planners decide, worked out by hand."""

import importlib
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Size3, finest_axes_coarser
from rrlsam.interfaces import Planner
from rrlsam.plan import MAX_ENCODER_PARAMETERS, GridPlan, NetworkPlan, Plan
from rrlsam.planning.fingerprint import AtlasFingerprint
from rrlsam.registry import get_planner

one_shot = importlib.import_module("rrlsam.planners.one_shot")
make = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "refresh.py"))
ISOTROPIC = (1.0, 1.0, 1.0)
CUBE = ((3, 3, 3),)


def plan_of(
    atlas: AtlasFingerprint,
    *,
    channels: tuple[str, ...] = ("T1",),
    cropped: Size3 | None = None,
    memory: float = 8.0,
    planner: Planner | None = None,
) -> Plan:
    """The plan for a data set of one scan, the atlas."""
    scan = make["scan"](atlas.size_vox, atlas.spacing_mm, cropped=cropped)
    fingerprint = make["fingerprint_of"]([scan], channels=channels)
    planner = planner or get_planner("default")
    return planner.plan(fingerprint, atlas, make["labels_of"](3), gpu_memory_target_gb=memory, time_budget_s=60.0)


def cube_atlas(edge: int, start: int, stop: int) -> AtlasFingerprint:
    """A cube of structures in a cube of 1 mm voxels."""
    return make["atlas_of"]((edge,) * 3, ISOTROPIC, (start,) * 3, (stop,) * 3)


def axis_of(atlas: AtlasFingerprint, spacing: tuple[float, float, float] = ISOTROPIC) -> tuple[int, int]:
    """First voxel and size of the atlas box on axis z."""
    box = one_shot.atlas_box(atlas, spacing)
    return box.start[0], box.size[0]


def test_the_margin_is_ten_millimetres_around_small_structures():
    assert axis_of(cube_atlas(100, 40, 50)) == (30, 30)


def test_the_margin_is_15_percent_of_large_structures():
    assert axis_of(cube_atlas(400, 100, 200)) == (85, 130)


def test_the_margin_is_at_least_8_voxels():
    atlas = make["atlas_of"]((100, 100, 100), (2.0, 2.0, 2.0), (40,) * 3, (50,) * 3)
    assert axis_of(atlas, (2.0, 2.0, 2.0)) == (32, 26)


def test_ten_millimetres_are_no_more_than_24_voxels():
    mouse = make["atlas_of"]((200, 200, 200), (0.1, 0.1, 0.1), (80,) * 3, (120,) * 3)
    assert axis_of(mouse, (0.1, 0.1, 0.1)) == (56, 88)


def test_the_box_is_scaled_about_the_edges_of_voxels():
    # 100 voxels of 2 mm, structure from 80 to 100 mm, become 200 voxels of 1 mm: 80 - 10 to 100 + 10.
    atlas = make["atlas_of"]((100, 100, 100), (2.0, 2.0, 2.0), (40,) * 3, (50,) * 3)
    assert axis_of(atlas) == (70, 40)


def test_a_broken_voxel_belongs_to_the_box():
    # 100 voxels of 1 mm become 50 of 2 mm; structures from 41 to 52 mm, with 8 voxels: 12.5 to 34.
    assert axis_of(cube_atlas(100, 41, 52), (2.0, 2.0, 2.0)) == (12, 22)
    assert axis_of(cube_atlas(100, 40, 51), (2.0, 2.0, 2.0)) == (12, 22)


def test_the_box_takes_in_all_structures():
    atlas = cube_atlas(200, 40, 50)
    other = replace(atlas.structures[0], label=2, box_start=(80, 80, 80), box_stop=(90, 90, 90))
    assert axis_of(replace(atlas, structures=(*atlas.structures, other))) == (30, 70)


def test_the_box_ends_with_the_image():
    assert axis_of(cube_atlas(100, 2, 12)) == (0, 22)


@pytest.mark.parametrize(("edge", "expected"), [(39, (0, 39)), (40, (5, 30))])
def test_an_axis_that_loses_less_than_a_quarter_is_kept_whole(edge: int, expected: tuple[int, int]):
    assert axis_of(cube_atlas(edge, 15, 25)) == expected


def test_a_thin_atlas_is_padded_until_it_can_be_pooled():
    plan = plan_of(make["atlas_of"]((6, 5, 6), ISOTROPIC, (1, 1, 1), (4, 4, 4)))
    assert plan.grid.start_vox == (-3, -3, -3)
    assert plan.grid.size_vox == (12, 12, 12)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2))


def test_the_hippocampus_becomes_one_grid_about_the_whole_image():
    grid = plan_of(make["atlas_of"]((35, 50, 36), ISOTROPIC, (7, 6, 9), (28, 44, 27))).grid
    assert grid.whole
    assert grid.size_vox == (40, 56, 40)
    assert grid.start_vox == (-2, -3, -2)


def test_masked_normalisation_needs_z_score_and_much_air():
    atlas = cube_atlas(100, 40, 60)
    channels = ("CT", "T1")
    assert plan_of(atlas, channels=channels, cropped=(74, 100, 100)).data.normalize_inside_nonzero == (False, True)
    assert plan_of(atlas, channels=channels, cropped=(75, 100, 100)).data.normalize_inside_nonzero == (False, False)


def test_nothing_is_mirrored_with_or_without_pairs():
    atlas = cube_atlas(100, 40, 60)
    for pairs in ((), ((1, 2),)):
        assert plan_of(replace(atlas, left_right_pairs=pairs)).augmentation.mirror_axes == ()


def test_too_large_a_grid_is_split_into_coarse_registration_and_patch():
    plan = plan_of(cube_atlas(300, 30, 270))
    grid = plan.grid
    assert max(grid.patch_vox) < min(grid.size_vox)
    assert max(grid.registration_size_vox) < min(grid.size_vox)
    for size in (grid.patch_vox, grid.registration_size_vox):
        used = one_shot.training_memory_gb(size, plan.network, 3)
        assert 2.0 < used <= 4.0, "at least half of its half should be used"


def test_a_grid_of_too_many_patches_is_made_of_coarser_voxels():
    atlas = make["atlas_of"]((300, 512, 512), (1.25, 0.7, 0.7), (20, 90, 40), (280, 420, 470))
    rich, poor = plan_of(atlas, memory=32.0), plan_of(atlas, memory=1.5)
    assert rich.data.spacing_mm == atlas.spacing_mm
    assert min(poor.data.spacing_mm) > 1.25
    assert max(poor.data.spacing_mm) < 1.05 * min(poor.data.spacing_mm)
    patch, grid = (math.prod(size) for size in (poor.grid.patch_vox, poor.grid.size_vox))
    assert 1 / 16 <= patch / grid < 1 / 10, "no coarser than needed"
    extents = [np.multiply(plan.grid.size_vox, plan.data.spacing_mm) for plan in (rich, poor)]
    np.testing.assert_allclose(*extents, rtol=0.15)


def test_scans_cut_along_different_axes_keep_their_planes():
    first, second = (10.0, 1.4, 1.4), (1.4, 10.0, 1.4)
    assert one_shot.mixed_spacing([first] * 6 + [second] * 4) == (1.4, 1.4, 1.4)
    assert one_shot.mixed_spacing([first] * 6 + [second] * 4 + [(1.0, 1.0, 1.0)] * 9) == (1.0, 1.0, 1.4)
    assert one_shot.mixed_spacing([first] * 10) is None
    assert one_shot.mixed_spacing([first] * 19 + [second]) is None
    assert one_shot.mixed_spacing([(1.0, 1.0, 1.0)] * 3) is None


def test_slices_are_thinned_out_only_once_voxels_are_as_long_as_wide():
    assert finest_axes_coarser((5.0, 1.0, 1.02), 1.03) == (5.0, 1.03, 1.02 * 1.03)
    assert finest_axes_coarser((5.0, 1.0, 2.0), 1.03) == (5.0, 1.03, 2.0)


def test_coarse_registration_makes_voxels_more_alike():
    network = NetworkPlan(widths=(16, 32), strides=((1, 1, 1), (1, 2, 2)), kernels=CUBE * 2)
    size = one_shot.registration_size((40, 300, 300), (5.0, 1.0, 1.0), network, 3, 4.0)
    assert size[0] == 40
    assert size[1] == size[2] < 300


def test_the_encoder_is_counted_convolution_by_convolution():
    # Level 1: 9 * (1 * 2 + 2 * 2) + 2 norms of 2 * 2; level 2: 27 * (2 * 4 + 4 * 4) + 2 norms of 2 * 4.
    assert one_shot.encoder_parameters(1, (2, 4), ((1, 3, 3), (3, 3, 3))) == 54 + 8 + 648 + 16


@pytest.mark.parametrize(
    ("levels", "widths"),
    [(2, (16, 256)), (4, (16, 32, 64, 256)), (5, (16, 32, 64, 128, 192)), (6, (16, 32, 64, 128, 128, 128))],
)
def test_the_deepest_level_takes_what_the_limit_leaves(levels: int, widths: tuple[int, ...]):
    kernels = CUBE * levels
    assert one_shot.encoder_widths(1, kernels, first=16) == widths
    wider = (*widths[:-1], widths[-1] + 16)
    assert widths[-1] == 256 or one_shot.encoder_parameters(1, wider, kernels) > MAX_ENCODER_PARAMETERS


def test_memory_counts_feature_maps_of_all_levels_and_class_maps():
    network = NetworkPlan(widths=(2, 4), strides=((1, 1, 1), (2, 2, 2)), kernels=CUBE * 2)
    expected = 4 * (30 * (2 * 4096 + 4 * 512) + 12 * 5 * 4096) / 1e9
    assert one_shot.training_memory_gb((16, 16, 16), network, 5) == pytest.approx(expected)


def test_the_plan_hands_on_what_it_was_told():
    plan = plan_of(cube_atlas(48, 5, 43), channels=("T1", "CT"))
    assert (plan.planner, plan.dataset, plan.atlases) == ("default", "Dataset001_Golden", ("a",))
    assert plan.channel_names == ("T1", "CT")
    assert plan.time_budget_s == 60.0


def test_an_atlas_without_structures_is_refused():
    with pytest.raises(BadInputError, match="atlas a: its label is empty"):
        plan_of(replace(cube_atlas(48, 5, 43), structures=()))


@pytest.mark.parametrize(
    ("size", "registration", "expected"),
    [
        ((64, 64, 64), (64, 64, 64), (64, 64, 64)),
        ((96, 112, 96), (48, 56, 48), (96, 112, 96)),
        ((256, 256, 256), (64, 64, 64), (128, 128, 128)),
        ((40, 512, 512), (40, 128, 128), (40, 224, 224)),
        ((128, 144, 128), (64, 72, 64), (122, 137, 122)),
    ],
)
def test_registered_images_are_compared_as_finely_as_is_affordable(size: Size3, registration: Size3, expected: Size3):
    """All axes are shortened alike, though none below the registration's, until two million voxels are left."""
    grid = GridPlan(start_vox=(0, 0, 0), size_vox=size, registration_size_vox=registration, patch_vox=(32, 32, 32))
    assert grid.comparison_size_vox == expected


def test_too_little_memory_is_refused_by_naming_what_would_do():
    with pytest.raises(ResourceError, match=r"0\.001 GB is too small.* the smallest that would do is 0\.0\d\d GB"):
        plan_of(cube_atlas(48, 5, 43), memory=0.001)


def test_low_memory_plans_for_less_with_thinner_networks():
    atlas, low = cube_atlas(300, 30, 270), get_planner("low_memory")
    rich, poor = plan_of(atlas, planner=low, memory=80.0), plan_of(atlas, planner=low, memory=0.75)
    assert rich == poor
    assert (rich.planner, rich.network.widths[0]) == ("low_memory", 8)
    assert plan_of(atlas, planner=low, memory=0.4).grid != rich.grid


@pytest.mark.parametrize(
    ("spacing", "axis"), [(ISOTROPIC, 0), ((1.0, 1.9, 1.0), 0), ((1.0, 3.0, 1.0), 1), ((0.8, 0.8, 5.0), 2)]
)
def test_the_teacher_sees_the_slices_that_a_scan_consists_of(spacing: tuple[float, float, float], axis: int):
    assert one_shot.slice_axis(spacing) == axis
