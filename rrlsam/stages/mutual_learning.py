"""Stage 2: both branches learn from the registration's pseudo labels, tied by mutual-EMA; one round of the loop."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch
from rrlsam.losses.segmentation import dice_and_cross_entropy
from rrlsam.nets.build import Networks
from rrlsam.nets.ema import mutual_ema_, pull_towards_
from rrlsam.plan import StagePlan
from rrlsam.stages.bilevel import response_of_segmentation
from rrlsam.stages.pseudo_labels import (
    agreement,
    class_prior,
    every_second,
    places_in_atlas,
    pseudo_label,
    warped_for_agreement,
)
from rrlsam.stages.registration import register, registration_terms
from rrlsam.stages.state import LossTerms

EMA_DECAY = 0.99
EmaDirection = Literal["mutual", "one_way", "off"]


@dataclass(frozen=True)
class MutualLearning:
    """L = L_reg + L_seg^m + L_seg^g; the general branch's mask prompts the medical branch's decoder."""

    settings: StagePlan
    name: str = "mutual_learning"
    follow_medical: bool = False
    """Start the general branch from the medical one: without SAM it has learnt nothing to keep."""
    ema: EmaDirection = "mutual"
    """one_way: only the general encoder follows."""
    prompted: bool = True
    """Whether the general branch's mask prompts the medical decoder."""
    general_branch: bool = True
    """Whether there is a general branch at all."""
    refinement_iterations: int = 0
    """Steps by which the field of every scan that is drawn is refined before, for pseudo labels; 0: the network's."""
    bilevel: bool = False
    """Whether registration foresees how the segmentation will answer to its pseudo labels."""
    augment: bool = True
    uses_patches: bool = True
    registers: bool = True

    def trainable(self, nets: Networks) -> Iterable[nn.Module]:
        """Both branches and the registration."""
        medical = (nets.medical_encoder, nets.registration_decoder, nets.auto_prompt_decoder)
        return (*medical, nets.general_encoder, nets.general_decoder) if self.general_branch else medical

    def begin(self, nets: Networks) -> None:
        """Bring the general branch to where it starts from."""
        if self.follow_medical:
            nets.general_encoder.load_state_dict(nets.medical_encoder.state_dict())
            nets.general_decoder.load_state_dict(nets.auto_prompt_decoder.segmentation.state_dict())

    def loss(self, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        """Registration makes the pseudo label, segmentation learns from it, their agreement improves registration."""
        patch = batch.patch
        registered = register(nets, atlas, batch)
        places = places_in_atlas(registered, atlas, batch)
        label, prior = pseudo_label(atlas, batch, places), class_prior(atlas, places)
        terms, prompt = registration_terms(registered, atlas, batch), None
        if self.general_branch:
            general = nets.general_decoder(nets.general_encoder(patch.image)) + prior
            terms["general_segmentation"], mask = dice_and_cross_entropy(general, *label)
            prompt = mask if self.prompted else None
        pyramid = registered.pyramid if patch is batch.whole else nets.medical_encoder(patch.image)
        medical = nets.auto_prompt_decoder(pyramid, prompt) + prior
        terms["medical_segmentation"], probabilities = dice_and_cross_entropy(medical, *label)
        terms["agreement"] = agreement(atlas, batch, places, probabilities)
        if self.bilevel:
            warped = warped_for_agreement(atlas, batch, places)
            decoder = nets.auto_prompt_decoder.parameters()
            terms["bilevel"] = response_of_segmentation(every_second(medical).float().log_softmax(1), warped, decoder)
        return LossTerms(terms)

    def after_step(self, nets: Networks) -> None:
        """Mutual-EMA of the two encoders."""
        if self.general_branch and self.ema == "mutual":
            mutual_ema_(nets.general_encoder, nets.medical_encoder, EMA_DECAY)
        elif self.general_branch and self.ema == "one_way":
            pull_towards_(nets.general_encoder, nets.medical_encoder, EMA_DECAY)
