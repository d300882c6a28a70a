"""The registration that a segmentation helps: fields pulled by images and by class probabilities at once (ours)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import View
from rrlsam.losses.similarity import ImagesAndLabels
from rrlsam.nets.flow import Flow
from rrlsam.stages.refinement import STRIDE, WINDOW, refine

LABEL_WEIGHT = 3.0
"""Of a voxel's squared difference of labels, beside a window's correlation of images."""
CODE_LENGTH = 8
"""Channels to which more classes than that are coded: warping every class would cost several times as much."""


def jointly_refined(
    flow: Flow, atlas: AtlasView, scan: View, probabilities: Float[Tensor, "1 k z y x"], iterations: int
) -> Flow:
    """Refine anew from a flow's coarser velocity, so that the warped label gets more like a segmentation too.

    `scan`: un-augmented, on the grid of comparison. `probabilities`: of the base classes, over the whole field of view.
    The atlas must not have an ignore label. Deterministic, without gradient.
    """
    code = label_codes(probabilities.shape[1]).to(probabilities)
    channels = scan.clean.shape[1]

    def beside(image: Tensor, classes: Tensor) -> Tensor:
        coded = torch.einsum("dk,bkzyx->bdzyx", code, classes.float())
        return torch.cat([image.float(), _resized(coded, image.shape[2:])], dim=1)

    with torch.no_grad():
        fixed = beside(scan.clean, probabilities)
        return refine(
            flow.velocities[0],
            beside(atlas.compared, atlas.fine_label),
            replace(scan, image=fixed, clean=fixed),
            iterations,
            lambda fixed, inside: ImagesAndLabels(fixed, inside, channels, LABEL_WEIGHT, WINDOW, STRIDE),
        )


def label_codes(n_classes: int) -> Float[Tensor, "d k"]:
    """A vector of length 1 for each class. Few classes: one-hot; else random directions, the same at all times.

    Where two classes meet, the squared difference of their codes tells on which side a voxel lies, as one-hot would.
    """
    if n_classes <= CODE_LENGTH:
        return torch.eye(n_classes)
    codes = torch.randn(CODE_LENGTH, n_classes, generator=torch.Generator().manual_seed(0))
    return codes / codes.norm(dim=0)


def _resized(volume: Float[Tensor, "1 d z y x"], size: torch.Size) -> Float[Tensor, "1 d z2 y2 x2"]:
    z, y, x = size
    return volume if volume.shape[2:] == size else F.adaptive_avg_pool3d(volume, (z, y, x))
