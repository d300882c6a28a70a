"""The registration decoder: what the features of two images say of how one moves onto the other."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rrlsam.nets.decoder import PyramidDecoder
from rrlsam.plan import NetworkPlan


class RegistrationDecoder(nn.Module):
    """Both images' features to a stationary velocity field; zero at initialisation."""

    def __init__(self, plan: NetworkPlan, *, level: int) -> None:
        """`level`: the level of the pyramid on which the velocity lives; 0 is the finest."""
        super().__init__()
        self.decoder = PyramidDecoder([2 * w for w in plan.widths], plan, stop_level=level, convolutions=2)
        self.head = nn.Conv3d(self.decoder.channels_out, 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, atlas: Sequence[Float[Tensor, "b _w _z _y _x"]], case: Sequence[Float[Tensor, "b _w _z _y _x"]]
    ) -> Float[Tensor, "b 3 z y x"]:
        """Velocity from the atlas to the case, in voxels of the level it lives on."""
        pyramid = [torch.cat(pair, dim=1) for pair in zip(atlas, case, strict=True)]
        return self.head(self.decoder(pyramid)).float()
