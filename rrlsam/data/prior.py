"""The atlas's label as a prior of the segmentation: blurred, since a registration is never wholly right."""

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.nets.separable import smoothed

SIGMAS = (0.5, 2.0)
"""Standard deviations of two Gaussians, in voxels, whose mean is taken: small errors are many, large ones do occur."""
FLOOR = 1e-3
"""What every class has everywhere, so that no place forbids it."""


def log_prior(label: Float[Tensor, "1 k z y x"]) -> Float[Tensor, "1 k z y x"]:
    """Log probability of each base class of a one-hot label, voxel by voxel."""
    blurred = torch.stack([smoothed(label, sigma) for sigma in SIGMAS]).mean(0) + FLOOR
    return (blurred / blurred.sum(1, keepdim=True)).log()
