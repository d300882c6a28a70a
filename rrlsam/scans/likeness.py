"""Whether two registered scans look like scans of one kind."""

import numpy as np
from jaxtyping import Bool, Float

UNLIKE = 0.2
"""Scans of one kind correlate more than that once registered; of two kinds less, or negatively."""
_BACKGROUND = 0.02
"""Of the range of intensities, above the lowest: what is darker is air or padding, dark in scans of all kinds."""
_FEWEST_VOXELS = 100


def likeness(
    fixed: Float[np.ndarray, "z y x"], warped: Float[np.ndarray, "z y x"], inside: Bool[np.ndarray, "z y x"]
) -> float | None:
    """Pearson's correlation of the intensities where neither scan shows background, -1 to 1.

    `inside`: where the warped scan has data. None where there is too little to compare.
    """
    both = inside & _foreground(fixed, inside) & _foreground(warped, inside)
    if both.sum() < _FEWEST_VOXELS:
        return None
    values = np.stack([fixed[both], warped[both]]).astype(np.float64)
    if (values.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(values)[0, 1])


def is_unlike(alike: float | None) -> bool:
    """Whether a `likeness` tells of scans of two kinds; where it is unknown it tells nothing."""
    return alike is not None and alike < UNLIKE


def _foreground(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    if not inside.any():
        return inside
    low, high = np.percentile(image[inside], (0.5, 99.5))
    return image > low + _BACKGROUND * (high - low)
