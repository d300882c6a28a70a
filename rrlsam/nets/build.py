"""Composition root: the only place where networks are wired together."""

import copy

import torch
from torch import nn

from rrlsam.errors import BadInputError
from rrlsam.nets.auto_prompt import AutoPromptDecoder
from rrlsam.nets.decoder import SegmentationDecoder
from rrlsam.nets.light_encoder import LightEncoder, count_parameters
from rrlsam.nets.registration import RegistrationDecoder
from rrlsam.nets.sam_weights import CHANNELS as SAM_CHANNELS
from rrlsam.plan import MAX_ENCODER_PARAMETERS, SAM_BASE_ENCODER_PARAMETERS, Plan


class Networks(nn.Module):
    """Everything that is trained. The two encoders start from the same weights (averaging them needs that)."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        channels, n_classes = len(plan.channel_names), plan.labels.n_classes
        self.general_encoder = LightEncoder(channels, plan.network)
        self.medical_encoder = copy.deepcopy(self.general_encoder)
        self.general_decoder = SegmentationDecoder(plan.network, n_classes)
        self.registration_decoder = RegistrationDecoder(plan.network, level=1 if plan.grid.whole else 0)
        self.auto_prompt_decoder = AutoPromptDecoder(plan.network, n_classes)
        self.feature_projection = nn.Conv3d(plan.network.widths[-1], SAM_CHANNELS, 1)
        """Light features to SAM's channels, for distillation only; outside the encoder."""

    @property
    def encoder_ratio(self) -> float:
        """Light encoder's parameters over SAM-Base's image encoder's."""
        return count_parameters([self.general_encoder]) / SAM_BASE_ENCODER_PARAMETERS


def build_networks(plan: Plan, *, seed: int) -> Networks:
    """Networks of a plan with weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = Networks(plan)
    if count_parameters([nets.general_encoder]) > MAX_ENCODER_PARAMETERS:
        raise BadInputError(
            f"plan: network.widths {plan.network.widths} give the light encoder {nets.encoder_ratio:.2%} of SAM-Base's "
            "parameters; at most 3 % are allowed, make them smaller"
        )
    return nets
