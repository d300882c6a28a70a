"""A general encoder on its own: distilled from SAM once, kept in a file, and what other trainings start from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rrlsam import __version__
from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Vector3
from rrlsam.nets.build import Networks
from rrlsam.plan import DistillationKind, NetworkPlan, Plan
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import from_json, record, to_json
from rrlsam.system.tensor_files import load_plain

FORMAT = 1
_KIND = "rrlsam general encoder"
_ADVICE = "give a file that rrlsam_distill has written"


@record
class EncoderSettings:
    """What a plan must agree with to start from the encoder."""

    channels: int
    """Of the scans."""
    network: NetworkPlan


@record
class EncoderProvenance:
    """How the encoder came to be."""

    teacher: str
    """SHA-256 of the teacher's weights."""
    loss: DistillationKind
    iterations: int
    seed: int
    scans: int
    spacing_mm: Vector3


@dataclass(frozen=True, kw_only=True)
class GeneralEncoder:
    """Weights with all that is to be known of them."""

    settings: EncoderSettings
    provenance: EncoderProvenance
    encoder: dict[str, Tensor]
    projection: dict[str, Tensor]
    """To SAM's channels: a training that goes on distilling goes on with it."""


def save_general_encoder(encoder: GeneralEncoder, path: Path) -> None:
    """Write the file whole or not at all: tensors and text only."""
    content = {
        "kind": _KIND,
        "format": FORMAT,
        "rrlsam_version": __version__,
        "settings": to_json(encoder.settings),
        "provenance": to_json(encoder.provenance),
        "encoder": encoder.encoder,
        "projection": encoder.projection,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_general_encoder(path: Path) -> GeneralEncoder:
    """Read the file without running any code in it; ResourceError or BadInputError if that can't be done."""
    try:
        content = load_plain(path, BadInputError(f"{path}: is damaged or holds more than tensors; {_ADVICE}"))
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read ({error.strerror or error}); {_ADVICE}") from error
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (_KIND, FORMAT):
        raise BadInputError(f"{path}: is no general encoder of format {FORMAT}; {_ADVICE}")
    return GeneralEncoder(
        settings=from_json(EncoderSettings, content["settings"], source=f"{path}: settings"),
        provenance=from_json(EncoderProvenance, content["provenance"], source=f"{path}: provenance"),
        encoder=content["encoder"],
        projection=content["projection"],
    )


def taken_from(nets: Networks, plan: Plan, provenance: EncoderProvenance) -> GeneralEncoder:
    """The general encoder of some networks."""

    def copied(module: torch.nn.Module) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}

    return GeneralEncoder(
        settings=EncoderSettings(channels=len(plan.channel_names), network=plan.network),
        provenance=provenance,
        encoder=copied(nets.general_encoder),
        projection=copied(nets.feature_projection),
    )


def start_from_(nets: Networks, plan: Plan, encoder: GeneralEncoder, *, source: str) -> None:
    """Give both encoders these weights (averaging them needs a common start); BadInputError if they do not fit."""
    has, wanted = encoder.settings, EncoderSettings(channels=len(plan.channel_names), network=plan.network)
    pairs = {"channels": (has.channels, wanted.channels)} | {
        f"network.{name}": (getattr(has.network, name), getattr(wanted.network, name))
        for name in ("widths", "strides", "kernels")
    }
    for name, (own, planned) in pairs.items():
        if own != planned:
            raise BadInputError(
                f"{source}: its {name} are {own}, the plan has {planned}; "
                "make one for the plan with rrlsam_distill --plan FILE"
            )
    if not all(bool(tensor.isfinite().all()) for tensor in (*encoder.encoder.values(), *encoder.projection.values())):
        raise BadInputError(f"{source}: holds numbers that are not finite; {_ADVICE}")
    try:
        for module in (nets.general_encoder, nets.medical_encoder):
            module.load_state_dict(encoder.encoder)
        nets.feature_projection.load_state_dict(encoder.projection)
    except RuntimeError as error:
        raise BadInputError(f"{source}: its tensors are not those of the network it names; {_ADVICE}") from error
