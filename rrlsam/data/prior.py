"""The atlas's label as a prior of the segmentation: blurred, since a registration is never wholly right."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.geometry import Vector3
from rrlsam.nets.separable import smoothed

SIGMAS = (0.5, 2.0)
"""Standard deviations of two Gaussians, in voxels of the finest axis, whose mean is taken: small errors are many, large
ones do occur. So they reach as far in mm along every axis: between thick slices a registration errs by less voxels."""
FAR_SIGMAS = (32.0, 8.0)
"""Of further ones, by which labels are carried on to where nobody labelled (ignore), widest first."""
NEARLY_NOTHING = 1e-3
"""Share of labelled voxels under a Gaussian of which a wider one is asked."""
ASTRAY = 0.03
"""Share of voxels where a registration is taken to be wrong altogether; there, a class is as likely as it is frequent.

prior = (1 - ASTRAY) * blurred label + ASTRAY * frequency of the class in the atlas, divided by its sum over classes.
So no class is ruled out anywhere, and what a class gets far off is little beside its own voxels, however few."""


def log_prior(label: Float[Tensor, "1 k z y x"], spacing_mm: Vector3) -> Float[Tensor, "1 k z y x"]:
    """Log probability of each base class of a label, voxel by voxel: one-hot, or no class where nobody labelled.

    `spacing_mm`: of the label's voxels along z, y, x. The frequency of a class without voxels is taken to be
    1 / number of classes.
    """
    n_classes, prior, known = label.shape[1], torch.empty_like(label), label.sum(1, keepdim=True)
    share = known.mean().clamp(min=1e-6)
    z, y, x = (min(spacing_mm) / edge for edge in spacing_mm)
    blur = partial(smoothed, shares=(z, y, x))
    nearby = {} if known.all() else {sigma: blur(known, sigma) for sigma in (*FAR_SIGMAS, *SIGMAS)}
    for index in range(n_classes):  # of large grids all classes at once would need several times the memory
        one = label[:, index, None]
        frequency = one.mean() / share if one.any() else torch.tensor(1 / n_classes)
        blurred = sum(_blurred(one, nearby, frequency, blur)) / len(SIGMAS)
        prior[:, index, None] = (1 - ASTRAY) * blurred + ASTRAY * frequency
    return prior.div_(prior.sum(1, keepdim=True)).log_()


def _blurred(
    one: Tensor, nearby: Mapping[float, Tensor], frequency: Tensor, blur: Callable[[Tensor, float], Tensor]
) -> Iterator[Tensor]:
    """A class under each of the Gaussians; `nearby`: the share of labelled voxels there, empty if all are."""
    if not nearby:
        yield from (blur(one, sigma) for sigma in SIGMAS)
        return
    guess = frequency.expand_as(one)
    for sigma in (*FAR_SIGMAS, *reversed(SIGMAS)):
        near = (blur(one, sigma) + NEARLY_NOTHING * guess) / (nearby[sigma] + NEARLY_NOTHING)
        if sigma in SIGMAS:
            yield near
        guess = near
