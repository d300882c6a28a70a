"""How scans serve each other as atlas, told without labels: how alike they become once one is registered to another."""

import logging
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float

from rrlsam.errors import BadInputError
from rrlsam.geometry import to_sitk
from rrlsam.losses.similarity import LocalCorrelation
from rrlsam.preprocessing.normalize import zscore
from rrlsam.preprocessing.resample import smooth_and_sample
from rrlsam.registration.apply import warp_image
from rrlsam.registration.register import checked, register_images, working_grid
from rrlsam.scans.dataset import Scan
from rrlsam.scans.volume import channels_first, channels_of, read_mended
from rrlsam.stages.refinement import STRIDE, WINDOW
from rrlsam.system.progress import Progress

TRIED = 25
"""Scans that are registered with each other at most: of more, those most like all others."""
MOST_VOXELS = 1 << 20
"""Finer images are made coarser before."""
PARTNERS = 4
"""Scans that each one is registered with, both ways; more of them hardly change the choice."""
ITERATIONS = 8
"""At each resolution: fewer than for a registration to be used, enough to tell scans apart."""
_log = logging.getLogger(__name__)


def find_services(scans: Sequence[Scan], progress: Progress) -> Float[np.ndarray, " n"]:
    """The `services` of scans, by registering each with PARTNERS others; NaN for those that cannot be registered."""
    images: dict[int, sitk.Image] = {}
    with progress("Reading", len(scans)) as advance:
        for index, scan in enumerate(scans):
            try:
                images[index] = trial_image(read_mended(scan.images, scan.repairs)[0], scan.case)
            except BadInputError as error:
                _log.warning("%s: is not tried as atlas: %s", scan.case, error)
            advance()
    usable = list(images)
    pairs, known = trial_pairs(len(usable)), np.full((len(usable), len(usable)), np.nan)
    with progress("Choosing the atlas", len(pairs)) as advance:
        for moving, fixed in pairs:
            known[moving, fixed] = correlation_after(images[usable[moving]], images[usable[fixed]])
            advance()
    service = np.full(len(scans), np.nan)
    service[usable] = services(known)
    return service


def trial_pairs(n: int) -> list[tuple[int, int]]:
    """Which of n scans are registered: (moving, fixed), each scan with its neighbours on a ring, both ways.

    The ring is in no order: scans whose names are alike are often of one person.
    """
    ring = np.random.default_rng(0).permutation(n).tolist()
    steps = [step for step in range(-(PARTNERS // 2), PARTNERS // 2 + 1) if step]
    return sorted({(ring[i], ring[(i + step) % n]) for i in range(n) for step in steps if step % n})


def trial_image(image: sitk.Image, name: str) -> sitk.Image:
    """The first channel of a scan, of MOST_VOXELS or fewer; BadInputError if it cannot be registered."""
    array, own = checked(channels_of(image)[0], name)
    channel, grid = to_sitk(array[0], own), working_grid(own, MOST_VOXELS)
    if grid == own:
        return channel
    coarse = smooth_and_sample(channel, grid, sitk.sitkLinear)
    checked(coarse, name)
    return coarse


def correlation_after(moving: sitk.Image, fixed: sitk.Image) -> float:
    """Mean local squared correlation, 0 to 1, of a fixed scan with a moving one registered to it, on the processor.

    What the moving scan does not show counts as 0: an atlas that covers less serves less.
    """
    warped = warp_image(moving, register_images(fixed, moving, iterations=ITERATIONS, device="cpu"))
    still, moved = (torch.from_numpy(zscore(channels_first(image)[0]))[None, None] for image in (fixed, warped))
    return float(LocalCorrelation(still, None, WINDOW, STRIDE)(moved))


def services(correlations: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """What each scan would be worth, from the correlations (moving, fixed) that are known; the others are NaN.

    A correlation is taken to be what the moving scan gives plus what the fixed one gives (least squares); a scan that
    gives much in both roles is a typical and clear one. Their sum is the correlation to expect with a scan like itself:
    about 0 to 1, below 0 for a scan that fits none. NaN for a scan that is in no known pair.
    """
    moving, fixed = np.nonzero(~np.isnan(correlations))
    n, rows = len(correlations), np.arange(len(moving))
    design = np.zeros((len(moving), 2 * n))
    design[rows, moving] = design[rows, n + fixed] = 1.0
    given = np.linalg.lstsq(design, correlations[moving, fixed], rcond=None)[0]
    service = (given[:n] + given[n:]).round(6)  # so that ties are ties on every machine
    return np.where(np.isin(np.arange(n), [*moving, *fixed]), service, np.nan)
