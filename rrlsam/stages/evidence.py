"""What a scan's own intensities say of its classes: the likelihood by which a segmentation is corrected (ours).

As in atlas-based segmentation by expectation maximisation (Van Leemput et al., IEEE TMI 1999; Ashburner and Friston,
NeuroImage 2005), but with histograms instead of Gaussians, and one step.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.nets.separable import gaussian

BINS = 48
"""Of equally many voxels each."""
BIN_SIGMA = 1.0
"""Gaussian by which histograms are smoothed, in bins."""
UNSURE_VOXELS = 200.0
"""So many voxels of any class are added to each class's own: of few voxels little is known."""
TRUST = 0.7
"""Exponent of a likelihood: neighbouring voxels are not independent of each other."""
REACH_VOX = 4
"""Only voxels as near as that to a structure are looked at: the rest of a scan is another matter."""
MOST_VOXELS = 1 << 20
"""Of more than that, every second, third and so on tells enough."""
_SOME = 0.01
_EPSILON = 1e-6


@dataclass(frozen=True)
class Evidence:
    """Of one scan."""

    edges: Float[Tensor, "c bins_1"]
    """Of each channel: the intensities at which a bin ends and the next one begins."""
    factors: Float[Tensor, "c k bins"]
    """(p(intensity | class) / p(intensity)) ^ (TRUST / c) of each bin."""


def find_evidence(
    image: Float[Tensor, "c z y x"], label: Float[Tensor, "k z y x"], inside: Float[Tensor, "1 z y x"]
) -> Evidence | None:
    """What intensities are found under each class of a (soft) label; None where there is too little to look at.

    `inside`: 1 in the scan's field of view. A voxel's classes sum to at most 1; what is missing, nobody labelled.
    """
    structure = (label[1:].sum(0, keepdim=True) > _SOME).float()
    near = F.max_pool3d(structure[None], 2 * REACH_VOX + 1, 1, REACH_VOX)[0]
    seen = ((near * inside)[0] * label.sum(0)).flatten().nonzero()[:, 0]
    if len(seen) < 10 * BINS:
        return None
    step = math.ceil(len(seen) / MOST_VOXELS)
    seen = seen[::step]
    classes = step * label.flatten(1)[:, seen]
    found = [_of_channel(channel.flatten()[seen], classes, len(image)) for channel in image]
    edges, factors = zip(*found, strict=True)
    return Evidence(torch.stack(edges), torch.stack(factors))


def judged(
    label: Float[Tensor, "1 k z y x"], image: Float[Tensor, "1 c z y x"], evidence: Evidence
) -> Float[Tensor, "1 k z y x"]:
    """A soft label times what the image's intensities say, with the sum over classes that it had."""
    total = label.sum(1, keepdim=True)
    for channel, edges, factors in zip(image[0], evidence.edges, evidence.factors, strict=True):
        bins = torch.bucketize(channel.contiguous(), edges, right=True)
        label = label * factors[:, bins][None]
    return label * (total / label.sum(1, keepdim=True).clamp(min=_EPSILON))


def _of_channel(values: Float[Tensor, " n"], classes: Tensor, n_channels: int) -> tuple[Tensor, Tensor]:
    """The edges of the bins, and the factor of each class and bin."""
    ends = torch.arange(1, BINS, device=values.device) * len(values) // BINS
    edges = values.sort().values[ends]
    counts = classes.new_zeros(BINS, len(classes))
    counts.index_add_(0, torch.bucketize(values, edges, right=True), classes.T)
    counts = (gaussian(BINS, BIN_SIGMA, counts) @ counts).T
    overall = counts.sum(0) / counts.sum()
    density = (counts + UNSURE_VOXELS * overall) / (counts.sum(1, keepdim=True) + UNSURE_VOXELS)
    ratio = (density + _EPSILON) / (overall + _EPSILON)
    return edges, ratio ** (TRUST / n_channels)
