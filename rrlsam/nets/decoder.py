"""The U-Net decoder that all three heads are built on."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rrlsam.nets.light_encoder import ConvBlock
from rrlsam.plan import NetworkPlan

FIRST_LOGITS = 0.1
"""Scale of an untrained decoder's logits: at first stands what is added to them, the prior."""


class PyramidDecoder(nn.Module):
    """From a feature pyramid back up to one of its levels: upsample, join the skip, convolve."""

    def __init__(self, skips: Sequence[int], plan: NetworkPlan, *, stop_level: int = 0, convolutions: int = 1) -> None:
        """`skips`: channels of the pyramid's levels; the output has `plan.widths[stop_level]` channels."""
        super().__init__()
        self.stop_level = stop_level
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        channels = skips[-1]
        for level in range(len(skips) - 2, stop_level - 1, -1):
            width, stride, kernel = plan.widths[level], plan.strides[level + 1], plan.kernels[level]
            self.ups.append(nn.ConvTranspose3d(channels, width, stride, stride))
            blocks = [ConvBlock(width + skips[level], width, kernel)]
            blocks += [ConvBlock(width, width, kernel) for _ in range(convolutions - 1)]
            self.blocks.append(nn.Sequential(*blocks))
            channels = width
        self.channels_out = channels

    def forward(self, pyramid: Sequence[Float[Tensor, "b _w _z _y _x"]]) -> Float[Tensor, "b w z y x"]:
        """Features at `stop_level`."""
        features = pyramid[-1]
        levels = range(len(pyramid) - 2, self.stop_level - 1, -1)
        for level, up, block in zip(levels, self.ups, self.blocks, strict=True):
            features = block(torch.cat([up(features), pyramid[level]], dim=1))
        return features


class SegmentationDecoder(nn.Module):
    """The light decoder of the general branch: pyramid to class logits."""

    def __init__(self, plan: NetworkPlan, n_classes: int) -> None:
        super().__init__()
        self.decoder = PyramidDecoder(plan.widths, plan)
        self.head = nn.Conv3d(self.decoder.channels_out, n_classes, 1)
        with torch.no_grad():
            self.head.weight.mul_(FIRST_LOGITS)

    def forward(self, pyramid: Sequence[Float[Tensor, "b _w _z _y _x"]]) -> Float[Tensor, "b k z y x"]:
        """Logits of the base classes."""
        return self.head(self.decoder(pyramid))
