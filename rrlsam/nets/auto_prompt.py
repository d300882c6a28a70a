"""The AP decoder: the general branch's mask prompts the medical branch's segmentation (no user interaction)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rrlsam.geometry import Size3
from rrlsam.nets.decoder import SegmentationDecoder
from rrlsam.nets.light_encoder import spatial_size
from rrlsam.plan import NetworkPlan


class PromptEmbedding(nn.Module):
    """A coarse mask as something that can be added to the deepest features: GELU(LayerNorm(Conv1x1x1(mask)))."""

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv3d(n_classes, width, 1)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.norm.weight)  # the prompt starts without effect: it is untrained when stage 2 begins

    def forward(self, mask: Float[Tensor, "b k z y x"], grid: Size3) -> Float[Tensor, "b w zd yd xd"]:
        """Class probabilities, pooled to the deepest level's grid and embedded."""
        tokens = self.project(F.adaptive_avg_pool3d(mask, grid))
        return F.gelu(self.norm(tokens.movedim(1, -1))).movedim(-1, 1)


class AutoPromptDecoder(nn.Module):
    """Segmentation decoder of the medical branch. method.md 1.4: the embedded prompt is added at the bottleneck."""

    def __init__(self, plan: NetworkPlan, n_classes: int) -> None:
        super().__init__()
        self.prompt = PromptEmbedding(n_classes, plan.widths[-1])
        self.segmentation = SegmentationDecoder(plan, n_classes)

    def forward(
        self, pyramid: Sequence[Float[Tensor, "b _w _z _y _x"]], prompt: Float[Tensor, "b k z y x"] | None
    ) -> Float[Tensor, "b k z y x"]:
        """Logits of the base classes. `prompt`: the general branch's class probabilities; None: unprompted."""
        if prompt is not None:
            deepest = pyramid[-1] + self.prompt(prompt.detach(), spatial_size(pyramid[-1]))
            pyramid = [*pyramid[:-1], deepest]
        return self.segmentation(pyramid)
