"""Whether an atlas's label lies on its image or a voxel beside it, told by what the label says of the intensities."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Integer

from rrlsam.geometry import Size3
from rrlsam.system.jsonio import record

LARGEST_SHIFT_VOX = 2
"""A label farther off than this is a wrong label, not an inexact one; it is left alone."""
WORTHWHILE_GAIN = 1.2
"""The moved label has to say at least a fifth more about the intensities."""
CLEARLY_ABOVE_CHANCE = 10.0
"""... and the gain must be that many times the information of a label without any relation to the image."""
MARGIN_VOX = 4
_BINS = 32
_MAX_VOXELS = 2_000_000


@record
class LabelOffset:
    """By how much a label has to be moved to fit its image."""

    shift_vox: Size3 = (0, 0, 0)
    """Whole voxels of the canonical atlas, axis order z, y, x; (0, 0, 0): it lies well, or nothing else is certain."""
    gain: float = 1.0
    """Mutual information of label and image at the best place, over that where the label lies."""


@dataclass(frozen=True)
class _Region:
    """The box around the structures, in which label and intensities are compared."""

    label: Integer[np.ndarray, "z y x"]
    bins: Integer[np.ndarray, "c z2 y2 x2"]
    """Quantile bins of the intensities inside the box."""
    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: int
    n_classes: int

    def information(self, shift: Size3) -> float:
        """Mutual information (nats, summed over channels) of the intensities and the label moved by `shift`."""
        box = tuple(slice(a - d, b - d, self.step) for a, b, d in zip(self.start, self.stop, shift, strict=True))
        label = self.label[box].ravel().astype(np.int64)
        known = label < self.n_classes
        size = self.n_classes * _BINS
        codes = (label[known] * _BINS + channel.ravel()[known] for channel in self.bins)
        return sum(_mutual_information(np.bincount(c, minlength=size).reshape(-1, _BINS)) for c in codes)

    @property
    def chance(self) -> float:
        """Information that a label without relation to the image seems to have (Miller and Madow's bias)."""
        present = len(np.unique(self.label))
        return len(self.bins) * (present - 1) * (_BINS - 1) / (2 * max(self.bins[0].size, 1))


def find_label_offset(
    label: Integer[np.ndarray, "z y x"], image: Float[np.ndarray, "c z y x"], *, n_classes: int
) -> LabelOffset:
    """Climb to the whole-voxel shift at which the label says most about the image.

    `label`: values of at least n_classes (ignore) count for nothing. The answer is no shift unless the climb ends
    within LARGEST_SHIFT_VOX at a gain that is worthwhile and clearly above chance.
    """
    region = _region(label, image, n_classes)
    if region is None:
        return LabelOffset()
    seen: dict[Size3, float] = {}
    best: Size3 = (0, 0, 0)
    while True:
        around = {shift: seen.get(shift) or region.information(shift) for shift in _neighbours(best)}
        seen |= around
        top = max(around, key=lambda shift: around[shift])
        if around[top] <= around[best]:
            break
        best = top
        if max(abs(n) for n in best) > LARGEST_SHIFT_VOX:
            return LabelOffset()
    here, there = seen[(0, 0, 0)], seen[best]
    certain = there >= WORTHWHILE_GAIN * here and there - here >= CLEARLY_ABOVE_CHANCE * region.chance
    return LabelOffset(shift_vox=best, gain=round(there / here, 4)) if certain and here > 0 else LabelOffset()


def move_label(label: Integer[np.ndarray, "z y x"], shift: Size3) -> Integer[np.ndarray, "z y x"]:
    """The label moved by whole voxels (z, y, x); what comes in from outside is background."""
    moved = np.zeros_like(label)
    target = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(shift, label.shape, strict=True))
    source = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in zip(shift, label.shape, strict=True))
    moved[target] = label[source]
    return moved


def _region(label: np.ndarray, image: np.ndarray, n_classes: int) -> _Region | None:
    """None where the volume is too thin to move the label in."""
    index = np.nonzero((label > 0) & (label < n_classes))
    reach = LARGEST_SHIFT_VOX + 2
    start = tuple(max(int(axis.min()) - MARGIN_VOX, reach) for axis in index)
    stop = tuple(min(int(axis.max()) + 1 + MARGIN_VOX, n - reach) for axis, n in zip(index, label.shape, strict=True))
    if any(b - a < 2 for a, b in zip(start, stop, strict=True)):
        return None
    voxels = float(np.prod([b - a for a, b in zip(start, stop, strict=True)]))
    step = int(np.ceil((voxels / _MAX_VOXELS) ** (1 / 3)))
    box = tuple(slice(a, b, step) for a, b in zip(start, stop, strict=True))
    bins = np.stack([_quantile_bins(channel[box]) for channel in image])
    return _Region(label=label, bins=bins, start=start, stop=stop, step=step, n_classes=n_classes)


def _quantile_bins(values: np.ndarray) -> np.ndarray:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.searchsorted(edges, values)


def _neighbours(shift: Size3) -> Iterator[Size3]:
    z, y, x = shift
    for dz, dy, dx in product((0, -1, 1), repeat=3):
        yield (z + dz, y + dy, x + dx)


def _mutual_information(counts: np.ndarray) -> float:
    joint = counts / max(counts.sum(), 1)
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())
