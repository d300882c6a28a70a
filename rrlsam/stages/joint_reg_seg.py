"""Stage 1b: the medical encoder learns joint registration and segmentation."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch
from rrlsam.losses.segmentation import dice_and_cross_entropy
from rrlsam.nets.build import Networks
from rrlsam.plan import StagePlan
from rrlsam.stages.pseudo_labels import agreement, class_prior, places_in_atlas, pseudo_label
from rrlsam.stages.registration import register, registration_terms
from rrlsam.stages.state import LossTerms


@dataclass(frozen=True)
class JointRegSeg:
    """L_JRS = L_reg + L_seg(warped atlas label, D_s(E_m(x))), the decoder unprompted."""

    settings: StagePlan
    name: str = "joint_reg_seg"
    augment: bool = True
    uses_patches: bool = False
    registers: bool = True
    refinement_iterations: int = 0
    """Steps by which the field of every scan that is drawn is optimised before, from rest; 0: the network's own."""

    def trainable(self, nets: Networks) -> Iterable[nn.Module]:
        """The medical branch; the prompt rests."""
        return (nets.medical_encoder, nets.registration_decoder, nets.auto_prompt_decoder.segmentation)

    def begin(self, nets: Networks) -> None:
        """Nothing: both encoders start from the same weights."""

    def loss(self, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        """Registration terms, and the segmentation against the registration's pseudo label."""
        registered = register(nets, atlas, batch)
        places = places_in_atlas(registered, atlas, batch)
        logits = nets.auto_prompt_decoder(registered.pyramid, None) + class_prior(atlas, places)
        loss, probabilities = dice_and_cross_entropy(logits, *pseudo_label(atlas, batch, places))
        terms = registration_terms(registered, atlas, batch)
        terms["agreement"] = agreement(atlas, batch, places, probabilities)
        terms["segmentation"] = loss
        return LossTerms(terms)

    def after_step(self, nets: Networks) -> None:
        """Nothing."""
