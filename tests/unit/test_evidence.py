"""Intensities of a scan correct a label that errs."""

import pytest
import torch
from torch import Tensor

from rrlsam.nets.separable import smoothed
from rrlsam.prediction import evidence
from rrlsam.prediction.evidence import BINS, Evidence, find_evidence, judged

SHAPE = (24, 24, 24)


def block(first: int, stop: int) -> Tensor:
    """One-hot background and a cube, (2, z, y, x)."""
    cube = torch.zeros(1, *SHAPE)
    cube[:, first:stop, first:stop, first:stop] = 1.0
    return torch.cat([1 - cube, cube])


def bright(label: Tensor, noise: float = 0.1) -> Tensor:
    """An image (1, z, y, x) in which the cube is bright."""
    return label[1:] + noise * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def soft(label: Tensor) -> Tensor:
    return smoothed(label[None], 1.5)[0]


def evidence_of(image: Tensor, label: Tensor) -> Evidence:
    found = find_evidence([(image, label)])
    assert found is not None
    return found


def corrected(image: Tensor, label: Tensor) -> Tensor:
    return judged(label, image, evidence_of(image, label))


def overlap(a: Tensor, b: Tensor) -> float:
    a, b = (label.argmax(0) == 1 for label in (a, b))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_label_that_lies_beside_its_structure_is_drawn_to_it():
    truth, guess = block(8, 16), block(9, 17)
    assert overlap(guess, truth) < 0.7
    assert overlap(corrected(bright(truth), soft(guess)), truth) > 0.9


def test_a_label_stays_where_intensities_show_nothing():
    truth, guess = block(8, 16), soft(block(8, 16))
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert overlap(corrected(image, guess), truth) > 0.91


def test_an_image_of_one_intensity_tells_no_voxel_from_another():
    guess, flat = soft(block(8, 16)), torch.full((1, *SHAPE), 3.0)
    factors = evidence_of(flat, guess).factors
    torch.testing.assert_close(factors, factors[..., :1].expand_as(factors), atol=1e-3, rtol=0)


def test_a_structure_that_a_blurred_label_makes_smaller_gets_its_volume_back(monkeypatch):
    truth, flat = block(8, 16), torch.full((1, *SHAPE), 3.0)
    guess = soft(truth)
    volumes = []
    for trust in (0.0, 0.5, 1.0):
        monkeypatch.setattr(evidence, "VOLUME_TRUST", trust)
        volumes.append(int((corrected(flat, guess).argmax(0) == 1).sum()))
    assert volumes[0] < 0.85 * 8**3
    assert volumes[0] < volumes[1] < volumes[2]
    assert abs(volumes[2] - 8**3) < 0.1 * 8**3


def test_only_the_order_of_intensities_counts():
    guess, image = soft(block(9, 17)), bright(block(8, 16))
    torch.testing.assert_close(corrected(image, guess), corrected(image.exp() * 100 - 7, guess))


@pytest.mark.parametrize(("trust", "tolerance"), [(0.5, 0.25), (1.0, 0.1)])
def test_every_class_nearly_keeps_its_volume(monkeypatch, trust, tolerance):
    monkeypatch.setattr(evidence, "VOLUME_TRUST", trust)
    large, small = block(2, 22)[1:], block(9, 15)[1:]
    truth = torch.cat([1 - large, large - small, small])
    guess, image = smoothed(truth[None], 1.5)[0], bright(torch.cat([truth[:1], truth[1:2] + 1.2 * truth[2:]]))
    seen = corrected(image, guess)
    assert (seen.argmax(0) != guess.argmax(0)).sum() > 40
    found, expected = torch.bincount(seen.argmax(0).flatten()), guess.sum((1, 2, 3))
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=0)
    assert int(found[2]) > int((guess.argmax(0) == 2).sum())


def test_what_is_faint_everywhere_does_not_outweigh_a_small_structure():
    large, small = block(2, 22)[1:], block(10, 13)[1:]
    truth = torch.cat([1 - large, large - small, small])
    guess = 0.97 * truth + 0.03 / 3 - 0.001
    image = bright(torch.cat([truth[:1], truth[1:2] + 1.5 * truth[2:]]))
    seen = corrected(image, guess).argmax(0) == 2
    assert int((seen != (truth[2] == 1)).sum()) <= 2


def test_probabilities_still_sum_to_one():
    seen = corrected(bright(block(8, 16)), soft(block(9, 17)))
    torch.testing.assert_close(seen.sum(0), torch.ones(SHAPE))


def test_channels_are_believed_together_no_more_than_one_that_says_the_same():
    guess, image = soft(block(9, 17)), bright(block(8, 16))
    once, twice = corrected(image, guess), corrected(image.repeat(2, 1, 1, 1), guess)
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)


def test_only_what_may_be_a_structure_is_looked_at():
    guess, image = soft(block(9, 15)), bright(block(9, 15))
    elsewhere = image.clone()
    elsewhere[guess[:1] >= 0.9999] = 100.0
    assert not torch.equal(image, elsewhere)
    found, other = evidence_of(image, guess), evidence_of(elsewhere, guess)
    assert torch.equal(found.factors, other.factors)
    assert torch.equal(found.edges, other.edges)


def test_parts_of_a_scan_are_looked_at_together():
    guess, image = soft(block(9, 17)), bright(block(8, 16))
    whole = evidence_of(image, guess)
    parts = find_evidence(zip(image.split(7, dim=1), guess.split(7, dim=1), strict=True))
    assert parts is not None
    assert torch.equal(parts.edges, whole.edges)
    torch.testing.assert_close(parts.factors, whole.factors)


@pytest.mark.parametrize("slices", [5, 24])
def test_of_very_many_voxels_some_tell_enough(monkeypatch, slices):
    truth, guess = block(8, 16), soft(block(9, 17))
    image = bright(truth)
    monkeypatch.setattr(evidence, "MOST_VOXELS", 1500)
    found = find_evidence(zip(image.split(slices, dim=1), guess.split(slices, dim=1), strict=True))
    assert found is not None
    assert overlap(judged(guess, image, found), truth) > 0.85


def test_of_few_voxels_nothing_is_concluded():
    nothing = block(0, 0)
    assert find_evidence([(bright(nothing), nothing)]) is None
    few = nothing.clone()
    few[:, :1, :1, : 10 * BINS - 1] = 0.5
    assert find_evidence([(bright(nothing), few)]) is None
