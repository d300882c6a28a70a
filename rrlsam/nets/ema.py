"""Mutual-EMA: two networks pull each other."""

import torch
from torch import nn


@torch.no_grad()
def pull_towards_(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Target <- decay * target + (1 - decay) * source, in place, parameter by parameter."""
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.lerp_(theirs, 1.0 - decay)


def mutual_ema_(general: nn.Module, medical: nn.Module, decay: float) -> None:
    """The paper's two lines, in its order: general from medical, then medical from the new general."""
    pull_towards_(general, medical, decay)
    pull_towards_(medical, general, decay)
