"""The light 3-D encoder; the general and the medical-specific encoder are two instances of it."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from rrlsam.geometry import Size3
from rrlsam.plan import NetworkPlan


class ConvBlock(nn.Sequential):
    """Convolution, InstanceNorm (no running statistics, so EMA has no buffers to mind), leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Size3, stride: Size3 = (1, 1, 1)) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(
            nn.Conv3d(channels_in, channels_out, kernel, stride, padding, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(0.01),
        )


class LightEncoder(nn.Module):
    """A pyramid of two convolution blocks a level."""

    def __init__(self, channels_in: int, plan: NetworkPlan) -> None:
        super().__init__()
        inputs = (channels_in, *plan.widths[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(ConvBlock(before, width, kernel, stride), ConvBlock(width, width, kernel))
            for before, width, kernel, stride in zip(inputs, plan.widths, plan.kernels, plan.strides, strict=True)
        )

    def forward(self, image: Float[Tensor, "b c z y x"]) -> list[Float[Tensor, "b _w _z _y _x"]]:
        """Features of every level, finest first."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return features


def spatial_size(features: Float[Tensor, "b c z y x"]) -> Size3:
    """Voxels of a volume, axis order z, y, x."""
    z, y, x = features.shape[2:]
    return (z, y, x)


def count_parameters(modules: Sequence[nn.Module]) -> int:
    """Trainable numbers of some modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
