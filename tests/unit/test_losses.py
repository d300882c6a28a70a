"""Similarity, smoothness and segmentation losses against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rrlsam.losses.segmentation import cross_entropy, dice_and_cross_entropy, dice_loss
from rrlsam.losses.similarity import LocalCorrelation, lncc
from rrlsam.losses.smoothness import diffusion


def noise(seed: int, shape: tuple[int, ...] = (1, 1, 12, 12, 12)) -> torch.Tensor:
    return 10 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_hot(labels: list[int], n_classes: int = 2) -> torch.Tensor:
    """Labels of a row of voxels as (1, k, 1, 1, n)."""
    return torch.nn.functional.one_hot(torch.tensor(labels), n_classes).T[None, :, None, None].float()


def everywhere(target: torch.Tensor) -> torch.Tensor:
    """The weight of a label that is known throughout."""
    return torch.ones_like(target[:, :1])


def test_losses_are_as_exact_in_mixed_precision():
    logits, target = noise(0, (1, 5, 12, 12, 12)), (noise(1, (1, 5, 12, 12, 12))).softmax(1)
    weight = everywhere(target)
    exact = dice_loss(logits.softmax(1), target, weight), *dice_and_cross_entropy(logits, target, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = dice_loss(logits.softmax(1), target, weight), *dice_and_cross_entropy(logits, target, weight)
    for one, other in zip(exact, mixed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_an_image_is_wholly_similar_to_itself():
    assert float(lncc(noise(0), noise(0))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("slope", "offset"), [(3.0, 40.0), (-0.5, 7.0)])
def test_similarity_does_not_mind_another_scale_and_offset(slope: float, offset: float):
    assert float(lncc(noise(0), slope * noise(0) + offset)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_similarity_does_not_mind_the_unit_of_the_images(unit: float):
    a, b = noise(0), noise(0) + noise(1)
    assert float(lncc(unit * a, unit * b)) == pytest.approx(float(lncc(a, b)), rel=1e-3)


def test_channels_count_alike_whatever_their_units():
    a, b = (torch.cat([noise(seed), noise(seed + 2)], dim=1) for seed in (0, 1))
    a[:, 1] = b[:, 1]
    units = torch.tensor([1.0, 1000.0]).view(1, 2, 1, 1, 1)
    assert float(lncc(a, b)) == pytest.approx((float(lncc(a[:, :1], b[:, :1])) + 1) / 2, abs=1e-3)
    assert float(lncc(units * a, units * b)) == pytest.approx(float(lncc(a, b)), rel=1e-3)
    assert float(lncc(units.flip(1) * a, units.flip(1) * b)) == pytest.approx(float(lncc(a, b)), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1000.0, -1e5])
def test_a_channel_without_contrast_counts_for_nothing(value: float):
    a, b = noise(0), noise(0) + noise(1)
    flat = torch.full_like(a, value)
    alone, beside = lncc(a, b), lncc(torch.cat([a, flat + 0.1 * noise(2)], dim=1), torch.cat([b, flat], dim=1))
    assert float(beside) == pytest.approx(float(alone), rel=1e-4)


def test_a_large_offset_changes_nothing():
    a, b = noise(0), noise(0) + noise(1)
    assert float(lncc(a + 3000, b + 3000)) == pytest.approx(float(lncc(a, b)), rel=1e-2)


def test_unrelated_images_are_hardly_similar():
    assert float(lncc(noise(0), noise(1))) < 0.05


def test_a_constant_image_is_similar_to_nothing():
    assert float(lncc(noise(0), torch.full_like(noise(0), 3.0))) == pytest.approx(0, abs=1e-3)


def test_similarity_equals_its_definition_window_by_window():
    a, b = noise(2, (1, 1, 5, 6, 7)), noise(3, (1, 1, 5, 6, 7)) + noise(2, (1, 1, 5, 6, 7))
    first, second = a[0, 0].numpy().astype(float), b[0, 0].numpy().astype(float)
    values = []
    for centre in np.ndindex(first.shape):
        window = tuple(slice(max(0, c - 1), c + 2) for c in centre)
        u, v = first[window] - first[window].mean(), second[window] - second[window].mean()
        values.append((u * v).mean() ** 2 / ((u * u).mean() * (v * v).mean() + 1e-7))
    assert float(LocalCorrelation(b, window=3)(a)) == pytest.approx(float(np.mean(values)), abs=1e-4)


def test_what_has_no_weight_does_not_count():
    a, b = noise(0), noise(0)
    b[:, :, 8:] = noise(1)[:, :, 8:]
    weight = torch.ones(1, 1, 12, 12, 12)
    weight[:, :, 4:] = 0
    assert float(lncc(a, b, weight)) == pytest.approx(1, abs=1e-4)
    assert float(lncc(a, b)) < 0.9


def test_the_weight_counts_every_channel():
    a = torch.cat([noise(0), noise(1)], dim=1)
    assert float(lncc(a, a, torch.ones(1, 1, 12, 12, 12))) == pytest.approx(1, abs=1e-4)


def test_no_weight_anywhere_is_no_similarity():
    assert float(lncc(noise(0), noise(0), torch.zeros(1, 1, 12, 12, 12))) == 0


def test_an_axis_shorter_than_the_window_is_allowed():
    flat = noise(0, (1, 1, 2, 12, 12))
    assert float(lncc(flat, flat)) == pytest.approx(1, abs=1e-3)


def test_the_roughness_of_a_linear_field_is_its_mean_squared_slope():
    field = torch.zeros(1, 3, 4, 5, 6)
    field[0, 0] = 3 * torch.arange(6.0)
    assert float(diffusion(field)) == pytest.approx(9 / 9)


def test_a_constant_field_is_smooth():
    assert float(diffusion(torch.full((2, 3, 4, 4, 4), 7.0))) == 0


def test_perfect_probabilities_lose_no_dice():
    target = one_hot([0, 0, 1, 1])
    assert float(dice_loss(target, target, everywhere(target))) == pytest.approx(0, abs=1e-6)


def test_dice_loss_has_its_known_value():
    """Background: 2 * 2 / (3 + 2) = 0.8; foreground: 2 * 1 / (1 + 2) = 2/3."""
    target = one_hot([0, 0, 1, 1])
    loss = dice_loss(one_hot([0, 0, 0, 1]), target, everywhere(target))
    assert float(loss) == pytest.approx(1 - (0.8 + 2 / 3) / 2, abs=1e-4)


def test_dice_is_taken_over_the_whole_batch():
    probabilities = torch.cat([one_hot([0, 1]), one_hot([0, 0])])
    target = torch.cat([one_hot([0, 1]), one_hot([0, 1])])
    assert float(dice_loss(probabilities, target, everywhere(target))) == pytest.approx(1 - (0.8 + 2 / 3) / 2, abs=1e-4)


def test_a_class_absent_from_both_costs_nothing():
    target = one_hot([0, 0, 1, 1], n_classes=3)
    assert float(dice_loss(target, target, everywhere(target))) == pytest.approx(0, abs=1e-6)


def test_dice_ignores_what_has_no_weight():
    probabilities, target = one_hot([0, 1, 1, 1]), one_hot([0, 1, 0, 0])
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    assert float(dice_loss(probabilities, target, weight)) == pytest.approx(0, abs=1e-6)


def test_undecided_probabilities_cost_the_logarithm_of_the_number_of_classes():
    target = one_hot([0, 1, 2, 0], n_classes=3)
    loss = cross_entropy(torch.full((1, 3, 1, 1, 4), 1 / 3).log(), target, everywhere(target))
    assert float(loss) == pytest.approx(math.log(3))


def test_soft_labels_weigh_the_classes():
    probabilities = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1, 1)
    target = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1)
    assert float(cross_entropy(probabilities.log(), target, everywhere(target))) == pytest.approx(
        -0.5 * (math.log(0.25) + math.log(0.75))
    )


def test_cross_entropy_is_the_mean_over_weighted_voxels():
    logits = torch.zeros(1, 2, 1, 1, 4)
    logits[..., 2:] = 50.0 * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    log_probabilities = logits.log_softmax(1)
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    assert float(cross_entropy(log_probabilities, one_hot([0, 1, 1, 1]), weight)) == pytest.approx(math.log(2))


def test_dice_and_cross_entropy_in_one_is_their_sum_with_its_gradient():
    logits = 0.2 * noise(0, (2, 4, 3, 5, 6)).requires_grad_()
    target = noise(1, (2, 4, 3, 5, 6)).softmax(1)
    weight = noise(2, (2, 1, 3, 5, 6)).clamp(0, 1)
    loss, probabilities = dice_and_cross_entropy(logits, target, weight)
    log = logits.log_softmax(1)
    plain = dice_loss(log.exp(), target, weight) + cross_entropy(log, target, weight)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(probabilities, log.exp())
    assert not probabilities.requires_grad
    (gradient,), (expected,) = (torch.autograd.grad(2 * value, logits) for value in (loss, plain))
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(dice_and_cross_entropy(logits - 7.0, target, weight)[0], loss)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-4)
