"""Fields that are pulled by images and by a segmentation at once."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import View
from rrlsam.losses.similarity import ImagesAndLabels, LocalCorrelation, SquaredDifference
from rrlsam.nets.displacement import warp
from rrlsam.nets.flow import Flow
from rrlsam.prediction.joint_refinement import CODE_LENGTH, jointly_refined, label_codes

SIZE = (24, 24, 24)
AT_REST = Flow((torch.zeros(1, 3, 12, 12, 12),))


def _ball(centre: tuple[float, ...]) -> torch.Tensor:
    """One-hot background and a ball of 6 voxels, (1, 2, z, y, x)."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij")
    away = torch.stack(axes) - torch.tensor(centre).view(3, 1, 1, 1)
    inside = away.square().sum(0) <= 36
    return torch.stack([~inside, inside]).float()[None]


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * torch.minimum(a[:, 1], b[:, 1]).sum() / (a[:, 1].sum() + b[:, 1].sum()))


@pytest.fixture
def resting():
    """An atlas and a scan whose images show nothing; the label is a ball in the middle."""
    flat = torch.zeros(1, 1, *SIZE)
    label = _ball((12, 12, 12))
    atlas = AtlasView(image=flat, compared=flat, fine_label=label, prior=torch.zeros_like(label), has_ignore=False)
    return atlas, View(image=flat, clean=flat, inside=torch.ones_like(flat), start=(0, 0, 0))


def _moved(resting, probabilities: torch.Tensor, iterations: int = 20) -> torch.Tensor:
    atlas, scan = resting
    flow = jointly_refined(AT_REST, atlas, scan, probabilities, iterations)
    return warp(atlas.fine_label, flow.displacement(SIZE))


def test_where_images_show_nothing_the_label_follows_the_segmentation(resting):
    wanted = _ball((12, 14, 11))
    before = _overlap(resting[0].fine_label, wanted)
    assert before < 0.8
    assert _overlap(_moved(resting, wanted), wanted) > 0.95


def test_a_label_that_lies_where_the_segmentation_says_stays(resting):
    label = resting[0].fine_label
    assert _overlap(_moved(resting, label), label) > 0.98


def test_many_classes_are_followed_by_their_codes(resting):
    """Twelve classes, of which the ball is the last: more than there are channels."""
    atlas, scan = resting

    def spread(two: torch.Tensor) -> torch.Tensor:
        return torch.cat([two[:, :1], torch.zeros(1, 10, *SIZE), two[:, 1:]], dim=1)

    wanted = _ball((12, 14, 11))
    many = dataclasses.replace(atlas, fine_label=spread(atlas.fine_label))
    flow = jointly_refined(AT_REST, many, scan, spread(wanted), 20)
    assert _overlap(warp(atlas.fine_label, flow.displacement(SIZE)), wanted) > 0.93


def test_probabilities_on_a_finer_grid_than_the_images_are_understood(resting):
    atlas, _ = resting
    flat = F.avg_pool3d(atlas.compared, 2)
    view = View(image=flat, clean=flat, inside=torch.ones_like(flat), start=(0, 0, 0))
    coarse = dataclasses.replace(atlas, image=flat, compared=flat)
    wanted = _ball((12, 14, 11))
    flow = jointly_refined(AT_REST, coarse, view, wanted, 20)
    assert _overlap(warp(atlas.fine_label, flow.displacement(SIZE)), wanted) > 0.9


def test_codes_have_length_one_and_tell_all_classes_apart():
    codes = label_codes(36)
    assert codes.shape == (CODE_LENGTH, 36)
    assert torch.allclose(codes.norm(dim=0), torch.ones(36))
    distances = torch.cdist(codes.T, codes.T) + 2 * torch.eye(36)
    assert float(distances.min()) > 0.3
    assert torch.equal(codes, label_codes(36))


def test_few_classes_are_one_hot():
    assert torch.equal(label_codes(3), torch.eye(3))


def test_images_and_labels_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    fixed, moved = torch.rand(2, 1, 5, 12, 12, 12, generator=generator)
    weight = torch.ones(1, 1, 12, 12, 12)
    both = ImagesAndLabels(fixed, weight, 2, 3.0, window=4, stride=2)
    images = LocalCorrelation(fixed[:, :2], weight, 4, 2)
    labels = SquaredDifference(fixed[:, 2:], weight)
    expected = images(moved[:, :2]) * images.n_counted + 3.0 * 3 * labels(moved[:, 2:]) * labels.n_counted
    torch.testing.assert_close(both(moved) * both.n_counted, expected)
