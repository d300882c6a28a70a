"""Mutual-EMA on scalars: general <- d g + (1 - d) m, then medical <- d m + (1 - d) of the new general."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rrlsam.nets.ema import mutual_ema_, pull_towards_

decays = st.floats(0, 1, width=32)
values = st.floats(-1000, 1000, width=32)


def scalar(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def value_of(module: nn.Module) -> float:
    return float(next(module.parameters()).detach())


def test_the_target_moves_and_the_source_rests():
    target, source = scalar(10.0), scalar(20.0)
    pull_towards_(target, source, 0.9)
    assert value_of(target) == pytest.approx(11.0)
    assert value_of(source) == 20.0


def test_the_medical_encoder_follows_the_general_one_as_it_is_after_its_own_step():
    general, medical = scalar(0.0), scalar(1.0)
    mutual_ema_(general, medical, 0.9)
    assert value_of(general) == pytest.approx(0.1)
    assert value_of(medical) == pytest.approx(0.9 * 1.0 + 0.1 * 0.1)


def test_the_two_come_closer_by_the_square_of_the_decay():
    general, medical = scalar(3.0), scalar(-5.0)
    mutual_ema_(general, medical, 0.95)
    assert value_of(general) - value_of(medical) == pytest.approx(8.0 * 0.95**2, rel=1e-5)


@given(values, values, decays)
def test_both_stay_between_where_they_were(first: float, second: float, decay: float):
    general, medical = scalar(first), scalar(second)
    mutual_ema_(general, medical, decay)
    low, high, slack = min(first, second), max(first, second), 1e-3
    assert low - slack <= value_of(general) <= high + slack
    assert low - slack <= value_of(medical) <= high + slack


def test_equal_networks_stay_as_they_are():
    general, medical = scalar(2.5), scalar(2.5)
    mutual_ema_(general, medical, 0.99)
    assert value_of(general) == value_of(medical) == 2.5


def test_every_parameter_moves_and_none_needs_a_gradient():
    target, source = nn.Conv3d(1, 2, 3), nn.Conv3d(1, 2, 3)
    before = [parameter.clone() for parameter in target.parameters()]
    pull_towards_(target, source, 0.5)
    for old, new, theirs in zip(before, target.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(new, (old + theirs) / 2)
        assert new.is_leaf
