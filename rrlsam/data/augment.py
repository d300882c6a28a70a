"""Random changes of training scans. Each draw is a pure function of the generator that it is given."""

import random as python_random
from collections.abc import Sequence

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
    """A rotation and scaling about the grid's centre: (4, 4), grid voxel indices (x, y, z) to such.

    Rotations act in millimetres, so that anisotropic voxels do not shear.
    """
    angles = random.uniform(-plan.rotation_degrees, plan.rotation_degrees, 3)
    scales = 1.0 + random.uniform(-plan.scale, plan.scale, 3)
    spacing = np.diag(np.array(spacing_mm, dtype=np.float64)[::-1])
    linear = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scales)
    centre = (np.array(shape[::-1], dtype=np.float64) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(spacing) @ linear @ spacing
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


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
