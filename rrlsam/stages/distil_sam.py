"""Stage 1a, the first of DSKD (dual-stage knowledge distillation): SAM's frozen encoder into the light general one."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch
from rrlsam.losses.distillation import distillation_loss
from rrlsam.nets.build import Networks
from rrlsam.plan import DistillationKind, StagePlan
from rrlsam.stages.state import LossTerms


@dataclass(frozen=True)
class DistilSam:
    """L_rec = || SAM(x) - projection(E_g(x)) ||^2 or another distance, on the deepest features of plain scans."""

    settings: StagePlan
    name: str = "distil_sam"
    kind: DistillationKind = "mse"
    augment: bool = False
    uses_patches: bool = False
    registers: bool = False
    refinement_iterations: int = 0

    def trainable(self, nets: Networks) -> Iterable[nn.Module]:
        """The general encoder and its projection to SAM's channels."""
        return (nets.general_encoder, nets.feature_projection)

    def begin(self, nets: Networks) -> None:
        """Nothing: both encoders start from the same weights."""

    def loss(self, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        """Distance between the teacher's features and the light encoder's."""
        if batch.features is None:
            raise ValueError("the batch holds no teacher features")
        student = nets.feature_projection(nets.general_encoder(batch.whole.image)[-1])
        return LossTerms({"distillation": distillation_loss(student, batch.features, self.kind)})

    def after_step(self, nets: Networks) -> None:
        """Nothing."""
