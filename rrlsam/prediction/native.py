"""What models say of a scan on the atlas grid, brought to the scan's own grid, slab by slab."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float

from rrlsam.geometry import Geometry
from rrlsam.labels import LabelScheme
from rrlsam.prediction.confidence import expected_dice
from rrlsam.prediction.evidence import find_evidence, judged
from rrlsam.prediction.inference import Kind, OnGrid, to_native
from rrlsam.scans.volume import channels_first, label_dtype


@dataclass(frozen=True, kw_only=True)
class NativeSegmentation:
    """The segmentation of a scan on its own grid."""

    mask: np.ndarray
    """Label values (z, y, x)."""
    promised_dice: np.ndarray
    """Of each structure, by the class probabilities."""
    exported: np.ndarray | None
    """What nnU-Net stores as probabilities, if it was to be kept."""


def segmentation_on_native(
    results: Sequence[OnGrid], native: Geometry, labels: LabelScheme, image: sitk.Image | None, *, keep: bool = False
) -> NativeSegmentation:
    """The segmentation that some models agree on; `image`: the scan, if its intensities are to correct it.

    `keep`: whether the class probabilities are wanted, too.
    """
    mask = _empty_mask(native, labels)
    kept, sums = None, np.zeros((3, len(labels.structures)))
    for slab, probabilities in _probabilities(results, native, image):
        chances = probabilities.numpy()
        mask[slab] = labels.to_mask(chances)
        for index, structure in enumerate(labels.structures):
            inside, chance = np.isin(mask[slab], structure.values), chances[list(structure.values)].sum(0)
            sums[:, index] += chance[inside].sum(), chance.sum(), inside.sum()
        if keep:
            exported = labels.exported(chances)
            kept = np.empty((len(exported), *native.shape), exported.dtype) if kept is None else kept
            kept[:, slab] = exported
    return NativeSegmentation(mask=mask, promised_dice=expected_dice(*sums), exported=kept)


def warped_on_native(results: Sequence[OnGrid], native: Geometry, labels: LabelScheme, kind: Kind) -> np.ndarray:
    """The warped atlas label (z, y, x)."""
    mask = _empty_mask(native, labels)
    for slab, probabilities in to_native(results, native, kind):
        mask[slab] = labels.to_mask(probabilities.numpy())
    return mask


def _probabilities(
    results: Sequence[OnGrid], native: Geometry, image: sitk.Image | None
) -> Iterator[tuple[slice, Float[torch.Tensor, "k z y x"]]]:
    """The segmentation's class probabilities, corrected by the intensities of an image if there is one."""
    if image is None:
        yield from to_native(results, native, "segmentation")
        return
    intensities = torch.from_numpy(channels_first(image)).float()
    parts = to_native(results, native, "segmentation")
    evidence = find_evidence((intensities[:, slab], probabilities) for slab, probabilities in parts)
    for slab, probabilities in to_native(results, native, "segmentation"):
        yield slab, probabilities if evidence is None else judged(probabilities, intensities[:, slab], evidence)


def _empty_mask(native: Geometry, labels: LabelScheme) -> np.ndarray:
    values = [0, *(v for s in labels.structures for v in s.values), *(labels.regions_class_order or ())]
    return np.zeros(native.shape, dtype=label_dtype(max(values)))
