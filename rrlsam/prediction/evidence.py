"""What a scan's own intensities say of its classes: the likelihood by which a segmentation is corrected (ours).

As in atlas-based segmentation by expectation maximisation (Van Leemput et al., IEEE TMI 1999; Ashburner and Friston,
NeuroImage 2005), but with histograms instead of Gaussians, one step, and volumes that are nearly kept: where classes
look much alike, or where a segmentation is unsure, a small class would else be swallowed by the large one beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.nets.separable import gaussian

BINS = 48
"""Of equally many voxels each."""
BIN_SIGMA = 1.0
"""Gaussian by which histograms are smoothed, in bins."""
UNSURE_VOXELS = 200.0
"""So many voxels, spread over the bins as all voxels are, are added to each class: of few voxels little is known.
p(bin | class) = (n of the class in the bin + UNSURE_VOXELS * p(bin)) / (n of the class + UNSURE_VOXELS)."""
TRUST = 0.7
"""Exponent of a likelihood: neighbouring voxels are not independent of each other."""
MOST_VOXELS = 1 << 20
"""Of more than that, every second, fourth and so on tells enough."""
FAINT = 0.03
"""Probabilities below that count as none: faint ones, summed over a scan, would outweigh a small structure."""
ROUNDS, ROUND_POWER = 30, 0.3
"""So many times, each class's factor is multiplied by (expected voxels / found voxels) ^ ROUND_POWER."""
VOLUME_TRUST = 0.5
"""Exponent of the factors that ROUNDS lead to, which is half of the way: a network that has learnt for long knows
volumes better than its probabilities add up to."""
_CERTAIN = 0.9999
"""Voxels that are background with this probability are not looked at: what lies far off is another matter."""
_EPSILON = 1e-6

Part = tuple[Float[Tensor, "c z y x"], Float[Tensor, "k z y x"]]
"""A part of a scan: intensities, and class probabilities, the background first."""


@dataclass(frozen=True)
class Evidence:
    """Of one scan."""

    edges: Float[Tensor, "c bins_1"]
    """Of each channel: the intensities at which a bin ends and the next one begins."""
    factors: Float[Tensor, "c k bins"]
    """(p(intensity | class) / p(intensity)) ^ (TRUST / c) of each bin; the first channel's also bring every class
    nearer to its expected volume."""


def find_evidence(parts: Iterable[Part]) -> Evidence | None:
    """What intensities are found under each class in all parts of a scan; None where there is too little to look at."""
    seen, step = [], 1
    for image, label in parts:
        near = (label[0] < _CERTAIN).flatten().nonzero()[::step, 0]
        seen.append((image.flatten(1)[:, near], _without_faint(label.flatten(1)[:, near])))
        while sum(values.shape[1] for values, _ in seen) > MOST_VOXELS:
            seen, step = [(values[:, ::2], classes[:, ::2]) for values, classes in seen], 2 * step
    values, classes = (torch.cat(found, dim=1) for found in zip(*seen, strict=True))
    if values.shape[1] < 10 * BINS:
        return None
    of_channels = [_of_channel(channel, step * classes, len(values)) for channel in values]
    edges, factors = (torch.stack(found) for found in zip(*of_channels, strict=True))
    factors[0] *= _keeping_volumes(classes, _corrected(classes, values, Evidence(edges, factors)))[:, None]
    return Evidence(edges, factors)


def judged(
    label: Float[Tensor, "k z y x"], image: Float[Tensor, "c z y x"], evidence: Evidence
) -> Float[Tensor, "k z y x"]:
    """Class probabilities times what the image's intensities say, summing to 1 again."""
    label = _corrected(_without_faint(label), image, evidence)
    return label / label.sum(0, keepdim=True).clamp(min=_EPSILON)


def _without_faint(label: Tensor) -> Tensor:
    """Class probabilities (k, *space) without faint ones, not normalised; every voxel keeps its largest."""
    return torch.where(label < label.amax(0).clamp(max=FAINT), 0.0, label)


def _corrected(label: Tensor, image: Tensor, evidence: Evidence) -> Tensor:
    """Class probabilities (k, *space) times the factors of all channels (c, *space), not normalised."""
    for channel, edges, factors in zip(image, evidence.edges, evidence.factors, strict=True):
        label = label * factors[:, torch.bucketize(channel.contiguous(), edges, right=True)]
    return label


def _keeping_volumes(before: Float[Tensor, "k n"], after: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """Factor of each class with which as many voxels have their largest value of `after` in it as `before` adds up to.

    A class that is likely nowhere, but a little so at many voxels, else comes out empty.
    """
    wanted, factors = before.sum(1) + 1.0, before.new_ones(len(before))  # a voxel more each: a class may have none
    contested = (after > 0).sum(0) > 1  # all others keep their class, whatever the factors
    settled = _sizes(after[:, ~contested]) + 1.0
    after = after[:, contested]
    for _ in range(ROUNDS):
        found = settled + _sizes(after * factors[:, None])
        factors = factors * (wanted / found) ** ROUND_POWER
    return factors**VOLUME_TRUST


def _sizes(label: Float[Tensor, "k n"]) -> Tensor:
    """How many voxels are likeliest to be of each class."""
    return torch.bincount(label.argmax(0), minlength=len(label))


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
