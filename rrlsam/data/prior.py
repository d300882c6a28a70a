"""The atlas's label as a prior of the segmentation: blurred, since a registration is never wholly right."""

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.nets.separable import smoothed

SIGMAS = (0.5, 2.0)
"""Standard deviations of two Gaussians, in voxels, whose mean is taken: small errors are many, large ones do occur."""
ASTRAY = 0.03
"""Share of a registration that is wrong altogether, so that no place forbids a class. There, a class is as likely as it
is frequent: what it gets far off is then little beside the class itself, however small that is."""


def log_prior(label: Float[Tensor, "1 k z y x"]) -> Float[Tensor, "1 k z y x"]:
    """Log probability of each base class of a one-hot label, voxel by voxel; a class without voxels is rare, not
    impossible."""
    frequency = label.mean((2, 3, 4), keepdim=True)
    frequency = torch.where(frequency > 0, frequency, 1 / label.shape[1])
    blurred = torch.stack([smoothed(label, sigma) for sigma in SIGMAS]).mean(0)
    blurred = (1 - ASTRAY) * blurred + ASTRAY * frequency
    return (blurred / blurred.sum(1, keepdim=True)).log()
