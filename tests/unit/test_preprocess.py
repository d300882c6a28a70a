import os

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.geometry import geometry_of, make_geometry, to_sitk
from rrlsam.plan import DataPlan, Normalization
from rrlsam.preprocessing import preprocess
from rrlsam.preprocessing.normalize import normalize
from rrlsam.preprocessing.preprocess import (
    MOST_DEVIATIONS,
    load_case,
    nonzero_box,
    prepare_image,
    preprocess_case,
    window_ct,
)
from rrlsam.preprocessing.resample import coarse_axis, resample
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.system.storage import read_array


def _data(rule: Normalization = "zscore", spacing=(1.0, 1.0, 1.0), inside: bool = False, channels: int = 1) -> DataPlan:
    return DataPlan(spacing_mm=spacing, normalization=(rule,) * channels, normalize_inside_nonzero=(inside,) * channels)


def _ramp_image() -> sitk.Image:
    """x + 2 y + 3 z in mm, on a grid with 1, 2, 1.5 mm voxels."""
    z, y, x = np.meshgrid(np.arange(12), np.arange(10), np.arange(14), indexing="ij")
    grid = make_geometry((12, 10, 14), np.diag([1.0, 2.0, 1.5, 1.0]))
    return to_sitk((x * 1.0 + 2 * y * 2.0 + 3 * z * 1.5 + 1).astype(np.float32), grid)


def test_the_box_holds_all_that_is_not_zero_in_any_channel():
    array = np.zeros((2, 8, 9, 10), dtype=np.float32)
    array[0, 2, 3, 4] = array[1, 5, 3, 8] = -1
    assert nonzero_box(array) == ((2, 3, 4), (6, 4, 9))
    assert nonzero_box(array * 0) == ((0, 0, 0), (8, 9, 10))


def test_zscore_has_zero_mean_and_unit_deviation(phantoms):
    array = phantoms.phantom(1)[0]
    made = normalize(array, _data())
    assert made.dtype == np.float32
    assert abs(made.mean()) < 1e-5
    assert abs(made.std() - 1) < 1e-4


def test_zscore_inside_looks_only_at_voxels_that_are_not_zero(phantoms):
    array = phantoms.phantom(1)[0]
    made = normalize(array, _data(inside=True))
    inside = made[array != 0]
    assert abs(inside.mean()) < 1e-5
    assert abs(inside.std() - 1) < 1e-4
    assert (normalize(array * 0, _data(inside=True)) == 0).all()


def test_what_zscore_leaves_out_is_as_dark_as_the_darkest_of_the_rest():
    brain = np.zeros((1, 12, 12, 12), dtype=np.float32)
    brain[0, 3:9, 3:9, 3:9] = 900 + np.arange(216).reshape(6, 6, 6)  # zero would be 16 deviations below the mean
    made = normalize(brain, _data(inside=True))
    inside, outside = made[brain != 0], made[brain == 0]
    assert np.ptp(outside) == 0
    assert np.isclose(outside[0], np.percentile(inside, 0.5))
    assert np.isclose(np.corrcoef(inside, brain[brain != 0])[0, 1], 1)


@pytest.mark.parametrize(
    ("rule", "low", "high"), [("rescale_to_0_1", 0, 1), ("rgb_to_0_1", 0, 0.8), ("ct", 0, 204), ("nonorm", 0, 204)]
)
def test_other_rules_scale_as_their_names_say(rule, low, high):
    made = normalize(np.linspace(0, 204, 1000, dtype=np.float32).reshape(1, 10, 10, 10), _data(rule))
    assert np.allclose((made.min(), made.max()), (low, high))


@pytest.mark.parametrize("absurd", [1e30, -1e30])
def test_one_absurd_voxel_does_not_flatten_the_others(phantoms, absurd):
    array = phantoms.phantom(1)[0]
    expected = normalize(array, _data())
    array[0, 0, 0, 0] = absurd
    made = normalize(array, _data())
    assert np.isfinite(made).all()
    assert np.corrcoef(made[0, 1:].ravel(), expected[0, 1:].ravel())[0, 1] > 0.999
    assert made[0, 1:].std() > 0.6


def test_resampling_keeps_a_ramp_in_the_world():
    image = _ramp_image()
    made = prepare_image(image, _data("nonorm", (1.0, 1.0, 1.0)))
    assert made.array.shape == (1, 18, 20, 14)
    z, y, x = np.meshgrid(*(np.arange(n) for n in made.stored.shape), indexing="ij")
    world = np.einsum("ij,jzyx->izyx", made.stored.matrix, np.stack([x, y, z, np.ones_like(x)]))
    expected = world[0] + 2 * world[1] + 3 * world[2] + 1
    assert np.abs(made.array[0] - expected)[4:-4, 4:-4, 4:-4].max() < 0.3


def test_a_spacing_within_a_thousandth_is_left_alone():
    image = _ramp_image()
    made = prepare_image(image, _data("nonorm", (1.5, 2.001, 1.0)))
    assert np.array_equal(made.array[0], sitk.GetArrayFromImage(image))
    assert made.stored == made.canonical


def test_resampling_stays_within_the_range_of_the_scan(phantoms):
    array = phantoms.phantom(1)[0]
    grid = make_geometry(array.shape[1:], np.eye(4))
    made = resample(array, grid, grid.with_spacing((0.7, 0.8, 1.4)))
    assert made.min() >= array.min()
    assert made.max() <= array.max()


def test_down_sampling_smooths_first():
    noise = np.random.default_rng(0).normal(size=(1, 24, 24, 24)).astype(np.float32)
    grid = make_geometry((24, 24, 24), np.eye(4))
    assert resample(noise, grid, grid.with_spacing((3.0, 3.0, 3.0))).std() < 0.3


def test_one_coarse_axis_is_not_interpolated():
    grid = make_geometry((6, 12, 12), np.diag([1.0, 1.0, 5.0, 1.0]))
    array = np.zeros((1, 6, 12, 12), dtype=np.float32)
    array[:, 3:] = 1
    finer = grid.with_spacing((2.5, 0.8, 0.8))
    assert coarse_axis(grid, finer) == 0
    assert set(np.unique(np.round(resample(array, grid, finer), 4)).tolist()) == {0.0, 1.0}


def test_two_coarse_axes_are_not_treated_apart():
    grid = make_geometry((6, 12, 12), np.diag([1.0, 5.0, 5.0, 1.0]))
    assert coarse_axis(grid, grid) is None


def test_thin_scans_are_resampled_too():
    grid = make_geometry((2, 12, 12), np.eye(4))
    made = resample(np.ones((1, 2, 12, 12), dtype=np.float32), grid, grid.with_spacing((0.5, 0.7, 0.7)))
    assert made.shape == (1, 4, 17, 17)
    assert np.allclose(made, 1)


@pytest.mark.parametrize("code", ["RAS", "PIR"])
def test_a_turned_copy_is_prepared_alike(phantoms, code):
    array, _ = phantoms.phantom(2)
    image = to_sitk(array[0], make_geometry(array.shape[1:], np.diag([1.0, 1.2, 1.4, 1.0])))
    straight = prepare_image(image, _data(spacing=(1.3, 1.3, 1.3)))
    turned = prepare_image(sitk.DICOMOrient(image, code), _data(spacing=(1.3, 1.3, 1.3)))
    assert np.allclose(turned.array, straight.array, atol=1e-4)
    assert np.allclose(turned.stored.matrix, straight.stored.matrix)


def test_the_crop_is_recorded(phantoms):
    array, _ = phantoms.phantom(0)
    padded = np.pad(array[0], ((2, 3), (1, 0), (0, 4)))
    made = prepare_image(to_sitk(padded, make_geometry(padded.shape, np.eye(4))), _data())
    start, stop = nonzero_box(padded[None])
    assert (made.crop_start, made.crop_stop) == (start, stop)
    assert made.stored == made.canonical.box(start, stop)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(BadInputError, match=r"has 1 channel\(s\), the plan expects 2"):
        prepare_image(_ramp_image(), _data(channels=2))


def test_the_ct_window_comes_from_the_atlas():
    stats = _stats(mean=50.0, std=250.0, low=-1000.0, high=650.0)
    array = np.array([-2000.0, 50.0, 3000.0], dtype=np.float32).reshape(1, 1, 1, 3)
    assert window_ct(array, _data("ct"), (stats,)).ravel().tolist() == pytest.approx([-4.2, 0.0, 2.4])
    assert window_ct(array, _data("zscore"), (stats,)) is array


def test_soft_tissue_stays_in_the_ct_window_of_an_enhanced_vessel():
    stats = _stats(mean=290.0, std=10.0, low=270.0, high=310.0)
    units = np.array([-1000.0, -160.0, -100.0, 40.0, 290.0, 310.0, 900.0], dtype=np.float32).reshape(1, 1, 1, 7)
    seen = window_ct(units, _data("ct"), (stats,)).ravel()
    assert seen[0] == seen[1] < seen[2] < seen[3] < seen[4] < seen[5] == seen[6]
    assert seen[-1] - seen[0] == pytest.approx(MOST_DEVIATIONS)


def _stats(*, mean: float, std: float, low: float, high: float) -> ChannelStats:
    return ChannelStats(
        mean=mean,
        std=std,
        minimum=low - 1.0,
        percentile_00_5=low,
        median=mean,
        percentile_99_5=high,
        maximum=high + 1.0,
    )


def test_a_stored_case_reads_back(tiny, tmp_path):
    scan = tiny.scans[0]
    info = preprocess_case(scan, _data(spacing=(1.5, 1.0, 1.0)), tmp_path)
    case = load_case(tmp_path, scan.case)
    assert case.info == info
    assert case.geometry == info.stored
    assert case.array.shape == (1, *info.stored.shape)
    assert sorted(p.name for p in tmp_path.glob("*lab*")) == ["lab_00.b2nd", "lab_00.json"]


def test_a_case_is_prepared_again_only_when_something_changed(tiny, tmp_path, monkeypatch, phantoms):
    prepared = []
    original = prepare_image
    monkeypatch.setattr(preprocess, "prepare_image", lambda *a: prepared.append(1) or original(*a))
    scan = tiny.scans[0]
    preprocess_case(scan, _data(), tmp_path)
    preprocess_case(scan, _data(), tmp_path)
    assert len(prepared) == 1
    preprocess_case(scan, _data(inside=True), tmp_path)
    assert len(prepared) == 2
    phantoms.write_volume(phantoms.phantom(77)[0][0], scan.images[0])
    preprocess_case(scan, _data(inside=True), tmp_path)
    assert len(prepared) == 3
    (tmp_path / "lab_00.b2nd").write_bytes((tmp_path / "lab_00.b2nd").read_bytes()[:-500])
    preprocess_case(scan, _data(inside=True), tmp_path)
    assert len(prepared) == 4


@pytest.mark.parametrize("name", ["lab_00.b2nd", "lab_00.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_case_says_what_to_do(tiny, tmp_path, name, damage):
    preprocess_case(tiny.scans[0], _data(), tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(BadInputError, match="run rrlsam_plan_and_preprocess again"):
        load_case(tmp_path, "lab_00")


def test_geometry_of_the_canonical_scan_is_kept(tiny, tmp_path):
    info = preprocess_case(tiny.scans[0], _data(), tmp_path)
    assert info.canonical == geometry_of(sitk.ReadImage(str(tiny.scans[0].images[0])))


def test_a_pipe_in_the_place_of_a_stored_array_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "case.b2nd")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_array(tmp_path / "case.b2nd")
