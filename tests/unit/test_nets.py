"""The networks: sizes, starts, and what the prompt does."""

import copy
import dataclasses
import importlib

import pytest
import torch

from rrlsam.errors import BadInputError
from rrlsam.nets.build import Networks, build_networks
from rrlsam.nets.light_encoder import LightEncoder, count_parameters
from rrlsam.plan import MAX_ENCODER_PARAMETERS, SAM_BASE_ENCODER_PARAMETERS, NetworkPlan

one_shot = importlib.import_module("rrlsam.planners.one_shot")
FLAT = NetworkPlan(
    widths=(4, 6, 10), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3))
)


def image(channels: int = 1, shape: tuple[int, int, int] = (8, 16, 12)) -> torch.Tensor:
    return torch.randn((2, channels, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [FLAT, dataclasses.replace(FLAT, widths=(16, 32, 64))])
def test_planners_count_the_encoders_parameters_as_torch_does(channels, network):
    counted = count_parameters([LightEncoder(channels, network)])
    assert one_shot.encoder_parameters(channels, network.widths, network.kernels) == counted


def test_an_encoder_of_more_than_three_percent_of_sam_is_refused(make_plan):
    network = NetworkPlan(widths=(16, 256, 256), strides=FLAT.strides, kernels=((3, 3, 3),) * 3)
    with pytest.raises(BadInputError, match="at most 3 % are allowed"):
        build_networks(make_plan(network=network), seed=0)


def test_the_widest_encoder_that_is_planned_is_accepted(make_plan):
    kernels = ((3, 3, 3),) * 5
    widths = one_shot.encoder_widths(1, kernels, first=16)
    network = NetworkPlan(widths=widths, strides=((1, 1, 1), *((2, 2, 2),) * 4), kernels=kernels)
    nets = build_networks(make_plan(network=network), seed=0)
    assert count_parameters([nets.general_encoder]) <= MAX_ENCODER_PARAMETERS
    assert nets.encoder_ratio <= 0.03
    assert nets.encoder_ratio == count_parameters([nets.medical_encoder]) / SAM_BASE_ENCODER_PARAMETERS


def test_both_encoders_start_alike_but_are_two(make_plan):
    nets = build_networks(make_plan(), seed=0)
    pairs = list(zip(nets.general_encoder.parameters(), nets.medical_encoder.parameters(), strict=True))
    assert all(torch.equal(general, medical) for general, medical in pairs)
    assert not any(general is medical or general.data_ptr() == medical.data_ptr() for general, medical in pairs)


def test_the_same_seed_gives_the_same_weights(make_plan):
    first, second, other = (build_networks(make_plan(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_global_random_state_is_left_alone(make_plan):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_networks(make_plan(), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_levels_have_the_sizes_of_their_strides():
    shapes = [tuple(level.shape) for level in LightEncoder(1, FLAT)(image())]
    assert shapes == [(2, 4, 8, 16, 12), (2, 6, 8, 8, 6), (2, 10, 4, 4, 3)]


def test_decoders_return_to_the_sizes_they_belong_to(make_plan):
    nets = build_networks(make_plan(network=FLAT), seed=0)
    pyramid = nets.medical_encoder(image())
    assert tuple(nets.general_decoder(pyramid).shape) == (2, 3, 8, 16, 12)
    assert tuple(nets.auto_prompt_decoder(pyramid, None).shape) == (2, 3, 8, 16, 12)
    assert tuple(nets.registration_decoder(pyramid, pyramid).shape) == (2, 3, 8, 8, 6)
    assert tuple(nets.feature_projection(pyramid[-1]).shape) == (2, 256, 4, 4, 3)


def test_untrained_registration_moves_nothing(make_plan):
    nets = build_networks(make_plan(), seed=0)
    velocity = nets.registration_decoder(nets.medical_encoder(image()), nets.medical_encoder(image() + 1))
    assert not velocity.any()


def _prompted(nets: Networks) -> tuple[torch.Tensor, torch.Tensor]:
    pyramid = nets.medical_encoder(image())
    prompt = torch.rand((2, 3, 8, 16, 12), generator=torch.Generator().manual_seed(2)).softmax(1)
    return nets.auto_prompt_decoder(pyramid, prompt), nets.auto_prompt_decoder(pyramid, None)


def test_the_prompt_starts_without_effect(make_plan):
    prompted, unprompted = _prompted(build_networks(make_plan(), seed=0))
    assert torch.equal(prompted, unprompted)


def test_the_prompt_has_an_effect_once_it_has_learnt(make_plan):
    nets = build_networks(make_plan(), seed=0)
    logits, _ = _prompted(nets)
    logits[:, 0].square().mean().backward()
    with torch.no_grad():
        for parameter in nets.auto_prompt_decoder.prompt.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    prompted, unprompted = _prompted(nets)
    assert not torch.allclose(prompted, unprompted, atol=1e-6)


def test_no_gradient_flows_through_the_prompt(make_plan):
    nets = build_networks(make_plan(), seed=0)
    torch.nn.init.ones_(nets.auto_prompt_decoder.prompt.norm.weight)
    mask = torch.rand(1, 3, 8, 16, 12, requires_grad=True)
    nets.auto_prompt_decoder(nets.medical_encoder(image()[:1]), mask).sum().backward()
    assert mask.grad is None


def test_copies_of_the_networks_share_nothing(make_plan):
    nets = build_networks(make_plan(), seed=0)
    twin = copy.deepcopy(nets)
    with torch.no_grad():
        next(twin.general_encoder.parameters()).zero_()
    assert next(nets.general_encoder.parameters()).any()
