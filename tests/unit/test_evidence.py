"""Intensities of a scan correct a label that errs."""

import pytest
import torch
from torch import Tensor

from rrlsam.nets.separable import smoothed
from rrlsam.stages import evidence
from rrlsam.stages.evidence import BINS, REACH_VOX, Evidence, find_evidence, judged

SHAPE = (24, 24, 24)
INSIDE = torch.ones(1, *SHAPE)


def block(first: int, stop: int) -> Tensor:
    """One-hot background and a cube, (1, 2, z, y, x)."""
    cube = torch.zeros(1, 1, *SHAPE)
    cube[..., first:stop, first:stop, first:stop] = 1.0
    return torch.cat([1 - cube, cube], dim=1)


def bright(label: Tensor, noise: float = 0.1) -> Tensor:
    """An image (1, z, y, x) in which the cube is bright."""
    return label[0, 1:] + noise * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def soft(label: Tensor) -> Tensor:
    return smoothed(label, 1.5)


def evidence_of(image: Tensor, label: Tensor, inside: Tensor = INSIDE) -> Evidence:
    found = find_evidence(image, label[0], inside)
    assert found is not None
    return found


def overlap(a: Tensor, b: Tensor) -> float:
    a, b = (label.argmax(1) == 1 for label in (a, b))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_label_that_lies_beside_its_structure_is_drawn_to_it():
    truth, guess = block(8, 16), block(9, 17)
    image = bright(truth)
    corrected = judged(soft(guess), image[None], evidence_of(image, guess))
    assert overlap(guess, truth) < 0.7
    assert overlap(corrected, truth) > 0.95


def test_a_label_stays_where_intensities_show_nothing():
    guess = soft(block(8, 16))
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert float((judged(guess, image[None], evidence_of(image, guess)) - guess).abs().max()) < 0.12


def test_an_image_of_one_intensity_changes_nothing():
    guess, flat = soft(block(8, 16)), torch.full((1, *SHAPE), 3.0)
    torch.testing.assert_close(judged(guess, flat[None], evidence_of(flat, guess)), guess, atol=1e-3, rtol=0)


def test_only_the_order_of_intensities_counts():
    guess, image = block(9, 17), bright(block(8, 16))
    found = [judged(soft(guess), i[None], evidence_of(i, guess)) for i in (image, image.exp() * 100 - 7)]
    torch.testing.assert_close(*found)


def test_what_nobody_labelled_stays_so():
    known = torch.ones(1, 1, *SHAPE)
    known[..., :12] = 0.25
    guess = soft(block(9, 17)) * known
    image = bright(block(8, 16))
    torch.testing.assert_close(judged(guess, image[None], evidence_of(image, guess)).sum(1), guess.sum(1))


def test_channels_are_believed_together_no_more_than_one_that_says_the_same():
    guess, image = block(9, 17), bright(block(8, 16))
    once, twice = (judged(soft(guess), i[None], evidence_of(i, guess)) for i in (image, image.repeat(2, 1, 1, 1)))
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["far away", "out of view"])
def test_only_what_is_near_a_structure_and_in_view_is_looked_at(how):
    guess, image = block(9, 13), bright(block(9, 13))
    elsewhere, inside = image.clone(), INSIDE.clone()
    if how == "far away":
        elsewhere[..., 13 + REACH_VOX :] = 100.0
    else:
        elsewhere[..., 13:] = 100.0
        inside[..., 13:] = 0.0
    found, other = evidence_of(image, guess, inside), evidence_of(elsewhere, guess, inside)
    assert torch.equal(found.factors, other.factors)
    assert torch.equal(found.edges, other.edges)


def test_of_very_many_voxels_some_tell_enough(monkeypatch):
    truth, guess = block(8, 16), block(9, 17)
    image = bright(truth)
    monkeypatch.setattr(evidence, "MOST_VOXELS", 1000)
    assert overlap(judged(soft(guess), image[None], evidence_of(image, guess)), truth) > 0.9


def test_of_few_voxels_nothing_is_concluded():
    tiny = torch.zeros(1, 2, 6, 6, 6)
    tiny[0, 0] = 1.0
    assert 10 * BINS > 6**3
    assert find_evidence(torch.randn(1, 6, 6, 6), tiny[0], torch.ones(1, 6, 6, 6)) is None
    assert find_evidence(bright(block(8, 16)), block(0, 0)[0], INSIDE) is None
