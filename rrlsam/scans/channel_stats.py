"""What the intensities of a scan are like, in a few numbers a channel."""

import numpy as np

from rrlsam.system.jsonio import record


@record
class ChannelStats:
    """Intensities of one channel of one scan, over its non-zero box or what its label names."""

    mean: float
    std: float
    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float


def channel_stats(values: np.ndarray) -> ChannelStats:
    """The numbers of some voxels."""
    low, median, high = np.percentile(values, (0.5, 50, 99.5)).tolist()
    return ChannelStats(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        minimum=float(values.min()),
        percentile_00_5=low,
        median=median,
        percentile_99_5=high,
        maximum=float(values.max()),
    )
