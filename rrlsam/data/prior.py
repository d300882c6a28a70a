"""The atlas's label as a prior of the segmentation: blurred, since a registration is never wholly right."""

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.nets.separable import smoothed

SIGMAS = (0.5, 2.0)
"""Standard deviations of two Gaussians, in voxels, whose mean is taken: small errors are many, large ones do occur."""
ASTRAY = 0.03
"""Share of voxels where a registration is taken to be wrong altogether; there, a class is as likely as it is frequent.

prior = (1 - ASTRAY) * blurred label + ASTRAY * frequency of the class in the atlas, divided by its sum over classes.
So no class is ruled out anywhere, and what a class gets far off is little beside its own voxels, however few."""


def log_prior(label: Float[Tensor, "1 k z y x"]) -> Float[Tensor, "1 k z y x"]:
    """Log probability of each base class of a one-hot label, voxel by voxel.

    The frequency of a class without voxels is taken to be 1 / number of classes.
    """
    n_classes, prior = label.shape[1], torch.empty_like(label)
    for index in range(n_classes):  # of large grids all classes at once would need several times the memory
        one = label[:, index, None]
        frequency = one.mean() if one.any() else 1 / n_classes
        blurred = sum(smoothed(one, sigma) for sigma in SIGMAS) / len(SIGMAS)
        prior[:, index, None] = (1 - ASTRAY) * blurred + ASTRAY * frequency
    return prior.div_(prior.sum(1, keepdim=True)).log_()
