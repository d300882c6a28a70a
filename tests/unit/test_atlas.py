"""The atlas's label and image on the atlas grid."""

import dataclasses
import logging

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rrlsam.data.atlas import Atlas, has_prior, make_atlas, split_ignore, view_atlas
from rrlsam.data.prior import log_prior
from rrlsam.geometry import geometry_of
from rrlsam.plan import GridPlan
from rrlsam.preprocessing.affine import alignment_image
from rrlsam.preprocessing.preprocess import load_case, preprocess_case
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.volume import read_labels, to_canonical

ISOTROPIC = (1.0, 1.0, 1.0)
STATS = ChannelStats(
    mean=50.0, std=20.0, minimum=0.0, percentile_00_5=0.0, median=50.0, percentile_99_5=200.0, maximum=250.0
)


@pytest.fixture
def atlas_of(tiny, make_plan, tmp_path):
    """The first case as an atlas on a grid; `change` edits its label (z, y, x)."""

    def make(start, size, spacing=(1.0, 1.0, 1.0), change=lambda label: None) -> tuple[Atlas, np.ndarray]:
        plan = make_plan()
        data = dataclasses.replace(plan.data, spacing_mm=spacing)
        grid = GridPlan(start_vox=start, size_vox=size, registration_size_vox=size, patch_vox=size)
        plan = dataclasses.replace(plan, data=data, grid=grid)
        scan = tiny.scans[0]
        preprocess_case(scan, data, tmp_path / "cases")
        stored = load_case(tmp_path / "cases", scan.case)
        image = to_canonical(read_labels(scan.label))
        values = sitk.GetArrayFromImage(image)
        change(values)
        label = sitk.GetImageFromArray(values)
        label.CopyInformation(image)
        picture = alignment_image(stored.array, stored.geometry)
        return make_atlas(stored, label, plan, (STATS,), picture), values

    return make


def test_at_the_scans_own_spacing_the_label_is_the_label_itself(atlas_of):
    atlas, values = atlas_of((0, 0, 0), (20, 24, 22))
    assert np.array_equal(atlas.label[0].numpy(), values)


def test_a_box_of_the_grid_is_a_box_of_the_label(atlas_of):
    atlas, values = atlas_of((4, 2, 6), (12, 16, 8))
    assert np.array_equal(atlas.label[0].numpy(), values[4:16, 2:18, 6:14])


def test_outside_the_field_of_view_all_is_background(atlas_of):
    def up_to_the_border(label: np.ndarray) -> None:
        label[:] = 1

    atlas, _ = atlas_of((-4, 0, -2), (28, 24, 26), change=up_to_the_border)
    expected = np.zeros((28, 24, 26))
    expected[4:24, :, 2:24] = 1
    assert np.array_equal(atlas.label[0].numpy(), expected)


def test_a_class_of_one_voxel_survives_a_coarser_grid(atlas_of, caplog):
    def one_voxel(label: np.ndarray) -> None:
        label[label == 2] = 1
        label[10, 12, 11] = 2

    with caplog.at_level(logging.WARNING, logger="rrlsam"):
        atlas, _ = atlas_of((0, 0, 0), (7, 8, 7), spacing=(3.0, 3.0, 3.0), change=one_voxel)
    assert (atlas.label == 2).nonzero().tolist() == [[0, 3, 4, 3]]
    assert "label 2 is thinner than a voxel of the atlas grid" in caplog.text


def test_on_a_coarser_grid_the_volumes_are_about_the_same(atlas_of):
    atlas, values = atlas_of((0, 0, 0), (10, 12, 11), spacing=(2.0, 2.0, 2.0))
    for value in (1, 2):
        assert float((atlas.label == value).sum()) * 8 == pytest.approx((values == value).sum(), rel=0.25)


def test_the_image_lies_on_the_same_grid_as_the_label(atlas_of, tiny, tmp_path):
    atlas, _ = atlas_of((4, 2, 6), (12, 16, 8))
    stored = load_case(tmp_path / "cases", tiny.scans[0].case)
    start = stored.info.crop_start
    cut = tuple(slice(a - s, a - s + n) for a, s, n in zip((4, 2, 6), start, (12, 16, 8), strict=True))
    torch.testing.assert_close(atlas.image[0], torch.from_numpy(stored.array[(..., *cut)]), atol=1e-4, rtol=0)


def test_the_alignment_picture_shows_the_whole_atlas(atlas_of):
    small, _ = atlas_of((4, 2, 6), (12, 16, 8))
    whole, _ = atlas_of((0, 0, 0), (20, 24, 22))
    assert torch.equal(small.alignment_image, whole.alignment_image)
    assert small.alignment_geometry.shape == tuple(small.alignment_image.shape)


def test_a_mirrored_view_mirrors_all_of_it(make_plan, make_atlas_in_miniature):
    plan = make_plan()
    view = view_atlas(make_atlas_in_miniature(plan), plan)
    moved = view.to(torch.device("cpu")).mirrored((0, 2))
    assert torch.equal(moved.fine_label, view.fine_label.flip((2, 4)))
    assert torch.equal(moved.prior, view.prior.flip((2, 4)))
    assert torch.equal(moved.image, view.image.flip((2, 4)))


def test_the_prior_is_a_distribution_that_forbids_nothing_and_follows_the_label(make_plan, make_atlas_in_miniature):
    plan = make_plan()
    view = view_atlas(make_atlas_in_miniature(plan), plan)
    chances = view.prior.exp()
    torch.testing.assert_close(chances.sum(1), torch.ones_like(chances[:, 0]))
    assert 1e-5 < float(chances.min()) < 2e-3
    assert float((chances.argmax(1) == view.fine_label.argmax(1)).float().mean()) > 0.97
    around = torch.nn.functional.avg_pool3d(view.fine_label[:, :1], 5, 1, 2, count_include_pad=False)
    deep, at_the_border = around == 1, (view.fine_label[:, :1] == 1) & (around < 0.7)
    assert float(chances[:, :1][deep].mean()) > float(chances[:, :1][at_the_border].mean()) + 0.1


def test_what_the_prior_gives_a_class_far_off_is_little_beside_the_class_itself():
    label = torch.zeros(1, 3, 40, 40, 40)
    label[:, 1, 18:21, 18:21, 18:21] = 1.0
    label[:, 0] = 1 - label[:, 1]
    chances = log_prior(label, ISOTROPIC).exp()
    far_off = chances[0, 1, :10].mean() * 40**3
    assert 0.01 * 27 < float(far_off) < 0.1 * 27
    assert float(chances[0, 2].min()) > 1e-3  # the atlas does not show this class, other scans may


def test_the_prior_carries_labels_on_to_where_nobody_labelled():
    """A rod along z, of which every eighth slice is labelled; no class is likelier there than in the slices."""
    label = torch.zeros(1, 2, 33, 24, 24)
    label[:, 1, ::8, 8:16, 8:16] = 1.0
    label[:, 0, ::8] = 1 - label[:, 1, ::8]
    chances = log_prior(label, ISOTROPIC).exp()
    torch.testing.assert_close(chances.sum(1), torch.ones_like(chances[:, 0]))
    assert float(chances[0, 1, :, 10:14, 10:14].min()) > 0.7
    assert float(chances[0, 1, :, :4, :4].max()) < 0.1
    assert float(((chances[0, 1, 4] > 0.5) == (label[0, 1, 0] > 0)).float().mean()) > 0.97


def test_the_prior_is_as_blurred_in_mm_between_thick_slices_as_within_them():
    """A half space: 3 mm beyond its face, its chance is the same along a thick axis (3 mm) as along a fine one."""

    def chances(axis: int) -> torch.Tensor:
        label = torch.zeros(1, 2, 24, 24, 24)
        label[:, 1].narrow(axis + 1, 0, 12).fill_(1.0)
        label[:, 0] = 1 - label[:, 1]
        return log_prior(label, (3.0, 1.0, 1.0)).exp()[0, 1].movedim(axis, 0)[:, 12, 12]

    thick, fine = chances(0), chances(1)
    assert float(thick[12]) < 0.2 < float(fine[12])
    assert abs(float(thick[12]) - float(fine[12:15].mean())) < 0.05


def test_a_view_without_prior_adds_nothing(make_plan, make_atlas_in_miniature):
    plan = make_plan()
    assert not view_atlas(make_atlas_in_miniature(plan), plan, prior=False).prior.any()


@pytest.mark.parametrize(("ablation", "expected"), [("one_way_ema", True), ("no_prior", False), ("bilevel", False)])
def test_there_is_no_prior_where_it_would_be_the_pseudo_label_itself(make_plan, ablation, expected):
    assert has_prior(make_plan(refinement_iterations=3), (ablation,)) is expected
    assert not has_prior(make_plan(refinement_iterations=0), (ablation,))


def test_the_ignore_class_becomes_a_weight(make_plan, make_atlas_in_miniature):
    labels = dataclasses.replace(make_plan().labels, ignore=3)
    plan = make_plan(labels=labels)
    view = view_atlas(make_atlas_in_miniature(plan), plan)
    classes, weight = split_ignore(view.fine_label, view.has_ignore)
    assert classes.shape[1] == 3
    assert weight is not None
    assert not weight[:, :, :3].any()
    assert weight[:, :, 3:].all()


def test_classes_of_a_voxel_that_is_labelled_in_part_sum_to_one_over_that_part():
    label = torch.tensor([[0.3, 0.1, 0.6], [0.0, 0.0, 1.0], [0.25, 0.75, 0.0]]).T.reshape(1, 3, 1, 1, 3)
    classes, weight = split_ignore(label, has_ignore=True)
    assert weight is not None
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.4, 0.0, 1.0]))
    torch.testing.assert_close(classes[0, :, 0, 0].T, torch.tensor([[0.75, 0.25], [0.0, 0.0], [0.25, 0.75]]))


def test_without_an_ignore_label_everything_counts(make_plan, make_atlas_in_miniature):
    plan = make_plan()
    view = view_atlas(make_atlas_in_miniature(plan), plan)
    assert split_ignore(view.fine_label, view.has_ignore) == (view.fine_label, None)


def test_the_grid_lies_where_the_plan_says(atlas_of, tiny):
    atlas, _ = atlas_of((4, 2, 6), (12, 16, 8))
    canonical = geometry_of(to_canonical(read_labels(tiny.scans[0].label)))
    np.testing.assert_allclose(atlas.grid.matrix @ [0, 0, 0, 1], canonical.matrix @ [6, 2, 4, 1])
