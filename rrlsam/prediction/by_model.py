"""Registration by a trained model: one of the ways in which `rrlsam.registration.register_scans` registers."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from rrlsam.geometry import to_sitk
from rrlsam.prediction.inference import Model
from rrlsam.registration.pair import Registration
from rrlsam.registration.register_scans import Moving


@dataclass(frozen=True, kw_only=True)
class ByModel:
    """A trained network, refined for the pair if asked for."""

    model: Model
    iterations: int
    method: str
    atlas: Moving
    segment: bool = False
    """Whether the model's segmentation of the fixed scan helps to register the atlas."""
    expects_likeness: bool = True

    def register(self, fixed: sitk.Image, moving: Moving) -> Registration:
        """By one pass of the network and `iterations` steps."""
        other = None if moving is self.atlas else moving.image
        return self.model.register(fixed, other, refinement_iterations=self.iterations, segment=self.segment)


def atlas_of(model: Model) -> Moving:
    """The atlas as a model carries it: normalised image and label on the atlas grid."""
    atlas = model.atlas
    channels = [to_sitk(channel.numpy(), atlas.grid) for channel in atlas.image[0]]
    labels = to_sitk(atlas.label[0].numpy().astype(np.int32), atlas.grid)
    return Moving(name=atlas.case, image=sitk.Compose(channels), labels=labels)
