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
    n_classes, prior = label.shape[1], torch.empty_like(label)
    for index in range(n_classes):  # of large grids all classes at once would need several times the memory
        one = label[:, index, None]
        frequency = one.mean() if one.any() else 1 / n_classes
        blurred = sum(smoothed(one, sigma) for sigma in SIGMAS) / len(SIGMAS)
        prior[:, index, None] = (1 - ASTRAY) * blurred + ASTRAY * frequency
    return prior.div_(prior.sum(1, keepdim=True)).log_()
