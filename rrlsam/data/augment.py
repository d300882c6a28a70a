"""Random changes of training scans. Each draw is a pure function of the generator that it is given."""

import random as python_random
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.spatial.transform import Rotation

from rrlsam.geometry import Size3
from rrlsam.plan import AugmentationPlan

NOISE_VARIANCE = (0.0, 0.05)
CONTRAST_RANGE = (0.75, 1.3)
BRIGHTNESS_RANGE = (0.8, 1.25)
GAMMA_RANGE = (0.7, 1.5)
BLUR_SIGMA = (0.3, 0.8)


def draw_affine(
    random: np.random.Generator, plan: AugmentationPlan, shape: Size3, spacing_mm: Sequence[float]
) -> np.ndarray:
    """A random rotation and scaling about the grid's centre, as a matrix (4, 4) like `turn`'s."""
    angles = random.uniform(-plan.rotation_degrees, plan.rotation_degrees, 3)
    scales = 1.0 + random.uniform(-plan.scale, plan.scale, 3)
    return turn(angles, scales, shape, spacing_mm)


def turn(degrees: np.ndarray, scales: np.ndarray, shape: Size3, spacing_mm: Sequence[float]) -> np.ndarray:
    """Rotation about x, y, z and scaling about a grid's centre: (4, 4), voxel indices (x, y, z) to such.

    It acts in millimetres, so that anisotropic voxels do not shear.
    """
    spacing = np.diag(np.array(spacing_mm, dtype=np.float64)[::-1])
    linear = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scales)
    centre = (np.array(shape[::-1], dtype=np.float64) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(spacing) @ linear @ spacing
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


def views_to_average(plan: AugmentationPlan, shape: Size3, spacing_mm: Sequence[float]) -> list[np.ndarray]:
    """What predictions are averaged over: the scan as it is, turned four ways by half of the training's rotation, and
    each of these mirrored if the plan mirrors. Matrices (4, 4) like `turn`'s; the first is the identity."""
    signs = np.array([(0, 0, 0), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], dtype=np.float64)
    turned = [turn(sign * plan.rotation_degrees / 2, np.ones(3), shape, spacing_mm) for sign in signs]
    mirrors = [axes for n in range(len(plan.mirror_axes) + 1) for axes in combinations(plan.mirror_axes, n)]
    return [view @ mirror_matrix(axes, shape) for axes in mirrors for view in turned]


def draw_mirror(random: np.random.Generator, plan: AugmentationPlan) -> tuple[int, ...]:
    """The axes (0 = z, 1 = y, 2 = x) that are mirrored this time, each with probability one half."""
    return tuple(axis for axis in plan.mirror_axes if random.random() < 0.5)


def mirror_matrix(axes: Sequence[int], shape: Size3) -> np.ndarray:
    """Mirroring of a grid as a (4, 4) matrix on voxel indices (x, y, z)."""
    matrix = np.eye(4)
    for axis in axes:
        matrix[2 - axis, 2 - axis] = -1.0
        matrix[2 - axis, 3] = shape[axis] - 1.0
    return matrix


def change_intensities(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Seeded noise, blur, brightness, contrast and gamma of a (c, z, y, x) image, by batchgenerators."""
    from batchgenerators.augmentations import color_augmentations as color
    from batchgenerators.augmentations import noise_augmentations as noise

    state, python_state = np.random.get_state(), python_random.getstate()  # batchgenerators draws from both
    seed = int(random.integers(2**32))
    np.random.seed(seed)
    python_random.seed(seed)
    chance = random.random(5)
    image = image.copy()
    try:
        if chance[0] < 0.15:
            image = noise.augment_gaussian_noise(image, NOISE_VARIANCE)
        if chance[1] < 0.15:
            image = noise.augment_gaussian_blur(image, BLUR_SIGMA)
        if chance[2] < 0.2:
            image = color.augment_brightness_multiplicative(image, BRIGHTNESS_RANGE)
        if chance[3] < 0.2:
            image = color.augment_contrast(image, CONTRAST_RANGE)
        if chance[4] < 0.3:
            image = color.augment_gamma(image, GAMMA_RANGE, retain_stats=True)
    finally:
        np.random.set_state(state)
        python_random.setstate(python_state)
    return np.ascontiguousarray(image, dtype=np.float32)
