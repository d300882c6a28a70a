import pytest
import torch

from rrlsam.losses.distillation import distillation_loss
from rrlsam.nets.sam import align_to_grid
from rrlsam.plan import DistillationKind


def test_a_coarser_grid_averages_tokens():
    tokens = torch.arange(8.0)[None, None, :, None, None].expand(1, 2, 8, 4, 4)
    aligned = align_to_grid(tokens, (2, 1, 4))
    assert aligned.shape == (1, 2, 2, 1, 4)
    torch.testing.assert_close(aligned[0, 1, :, 0, 3], torch.tensor([1.5, 5.5]))


def test_a_grid_that_does_not_divide_the_tokens_averages_overlapping_tokens():
    aligned = align_to_grid(torch.tensor([0.0, 3.0, 6.0])[None, None, None, None], (1, 1, 2))
    torch.testing.assert_close(aligned.flatten(), torch.tensor([1.5, 4.5]))


def test_the_tokens_own_grid_changes_nothing():
    tokens = torch.rand(1, 3, 2, 4, 5)
    assert torch.equal(align_to_grid(tokens, (2, 4, 5)), tokens)


def test_a_finer_axis_is_interpolated_and_a_coarser_one_averaged():
    tokens = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, None, :, None, :]
    aligned = align_to_grid(tokens, (1, 1, 4))
    torch.testing.assert_close(aligned.flatten(), torch.tensor([4.0, 5.0, 7.0, 8.0]))


@pytest.mark.parametrize(("kind", "expected"), [("mse", 12.5), ("l1", 3.5), ("cosine", 1.0)])
def test_losses_have_their_known_values(kind: DistillationKind, expected: float):
    student = torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1, 1)
    teacher = torch.tensor([0.0, 4.0]).reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(distillation_loss(student, teacher, kind), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["mse", "l1", "cosine"])
def test_equal_features_cost_nothing(kind: DistillationKind):
    features = torch.rand(1, 4, 2, 2, 2) + 0.1
    assert float(distillation_loss(features, features.clone(), kind)) == pytest.approx(0, abs=1e-6)


def test_the_size_of_feature_vectors_does_not_matter_to_the_cosine():
    features = torch.rand(1, 4, 2, 2, 2) + 0.1
    assert float(distillation_loss(features, 3 * features, "cosine")) == pytest.approx(0, abs=1e-6)


def test_half_precision_features_are_compared_in_single_precision():
    teacher = torch.full((1, 1, 1, 1, 1), 60000.0, dtype=torch.float16)
    student = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    loss = distillation_loss(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3.6e9, rel=1e-2)
    assert student.grad is not None


def test_features_on_another_grid_are_refused():
    with pytest.raises(Exception, match="teacher"):
        distillation_loss(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 4, 2, 2))
