"""Intensity normalisation that needs no label, one rule a channel."""

import numpy as np

from rrlsam.plan import DataPlan, Normalization

_FAR_OUT = 20.0
"""A voxel further than this many times the 0.5 to 99.5 percentile range outside that range is a defect."""


def normalize(array: np.ndarray, data: DataPlan) -> np.ndarray:
    """Normalised copy of (c, z, y, x), float32."""
    rules = zip(array, data.normalization, data.normalize_inside_nonzero, strict=True)
    return np.stack([_normalize_channel(*rule) for rule in rules])


def _normalize_channel(channel: np.ndarray, rule: Normalization, inside_nonzero: bool) -> np.ndarray:
    values = _tame_outliers(channel.astype(np.float32))
    if rule == "zscore":
        return zscore(values, inside_nonzero=inside_nonzero)
    if rule == "rescale_to_0_1":
        low, high = float(values.min()), float(values.max())
        return (values - np.float32(low)) / np.float32(max(high - low, 1e-8))
    if rule == "rgb_to_0_1":
        return values / np.float32(255)
    return values  # nonorm; and ct, whose window comes from the atlas (preprocess.window_ct)


def zscore(values: np.ndarray, *, inside_nonzero: bool = False) -> np.ndarray:
    """Zero mean and unit deviation of the chosen voxels.

    Voxels that are not chosen become as dark as the darkest of the others (0.5th percentile): the edge of a
    skull-stripped brain stays an edge, which it would not be if they became 0, the mean.
    """
    chosen = values != 0 if inside_nonzero else np.ones(values.shape, dtype=bool)
    if not chosen.any():
        return values
    inside = values[chosen]
    mean, std = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    if not chosen.all():
        values = np.where(chosen, values, np.percentile(inside, 0.5))
    return ((values - mean) / max(std, 1e-8)).astype(np.float32)


def _tame_outliers(values: np.ndarray) -> np.ndarray:
    """Clip absurd intensities (1e30, say), which would flatten all others; ordinary scans come back unchanged."""
    low, high = np.percentile(values, (0.5, 99.5))
    span = high - low
    if span <= 0:
        return values
    return np.clip(values, low - _FAR_OUT * span, high + _FAR_OUT * span).astype(np.float32)
