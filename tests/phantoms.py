"""Seeded phantoms: two nested ellipsoids and a satellite, smoothly deformed, and data sets made of them."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SIZE = (20, 24, 22)


def displacement(seed: int, size: tuple[int, int, int] = SIZE, amplitude: float = 1.5) -> np.ndarray:
    """Known smooth displacement in voxels, (3, z, y, x): one sine wave an axis; seed 0 is at rest."""
    z, y, x = (np.linspace(0, np.pi, n) for n in size)
    bump = np.sin(z)[:, None, None] * np.sin(y)[None, :, None] * np.sin(x)[None, None, :]
    direction = np.random.default_rng(seed).uniform(-1, 1, 3) if seed else np.zeros(3)
    return amplitude * direction[:, None, None, None] * bump


def phantom(
    seed: int, size: tuple[int, int, int] = SIZE, amplitude: float = 1.5, channels: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Image (c, z, y, x) float32 and label (z, y, x) uint8 with the values 0, 1 (shell) and 2 (core)."""
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij"))
    grid = grid + displacement(seed, size, amplitude)
    unit = [(axis - (n - 1) / 2) / n for axis, n in zip(grid, size, strict=True)]

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return sum(((u - c) / r) ** 2 for u, c, r in zip(unit, centre, radii, strict=True)) <= 1  # pyright: ignore

    head = ellipsoid((0, 0, 0), (0.46, 0.46, 0.46))
    shell = ellipsoid((0.05, 0, -0.04), (0.28, 0.34, 0.26))
    core = ellipsoid((0.05, 0.05, -0.04), (0.15, 0.18, 0.14))
    satellite = ellipsoid((-0.2, -0.2, 0.2), (0.1, 0.12, 0.1))
    image = 40.0 * head + 60.0 * shell + 80.0 * core + 150.0 * satellite
    noise = np.random.default_rng(1000 + seed).normal(0, 3, (channels, *size))
    stack = np.stack([image if c % 2 == 0 else 250.0 - image for c in range(channels)])
    array = np.where(head, np.maximum(stack + noise, 1), 0).astype(np.float32)
    return array, np.where(core, 2, np.where(shell, 1, 0)).astype(np.uint8)


def two_sided_phantom(seed: int, size: tuple[int, int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, z, y, x) and label of a body that is its own mirror image, but for a slight deformation.

    Values: 1 towards small x, 2 its counterpart, 3 between them; seed 0 is wholly symmetric but for noise.
    """
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij"))
    grid = grid + displacement(seed, size, 0.8)
    z, y, x = ((axis - (n - 1) / 2) / n for axis, n in zip(grid, size, strict=True))
    head = (z / 0.46) ** 2 + (y / 0.4) ** 2 + (x / 0.46) ** 2 <= 1
    sides = ((z - 0.04) / 0.24) ** 2 + ((y + 0.05) / 0.22) ** 2 + ((np.abs(x) - 0.24) / 0.13) ** 2 <= 1
    middle = ((z + 0.02) / 0.14) ** 2 + ((y - 0.12) / 0.2) ** 2 + (x / 0.15) ** 2 <= 1
    label = np.where(middle, 3, np.where(sides, np.where(x < 0, 1, 2), 0)).astype(np.uint8)
    bright = 40.0 * head + 60.0 * sides + 120.0 * middle
    noise = np.random.default_rng(1000 + seed).normal(0, 3, size)
    return np.where(head, np.maximum(bright + noise, 1), 0).astype(np.float32)[None], label


def write_volume(
    array: np.ndarray, path: Path, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None
) -> None:
    """Write a (z, y, x) array; spacing, origin and direction in ITK's order x, y, z."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_dataset(
    folder: Path,
    n_labelled: int = 5,
    n_unlabelled: int = 2,
    *,
    n_test: int = 0,
    channels: int = 1,
    channel_name: str = "MRI",
    regions: bool = False,
    ignore: bool = False,
    two_sided: bool = False,
    ending: str = ".nii.gz",
    size: tuple[int, int, int] = SIZE,
    amplitude: float = 1.5,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Path:
    """Write a raw data set: cases lab_00.. in imagesTr, un_00.. in imagesUn, test_00.. in imagesTs; returns `folder`.

    Labels are shell 1 and core 2; regions: whole [1, 2] and core 2; ignore: 3 in the first two slices; two_sided:
    bodies of one channel that are nearly their own mirror image, with left 1, right 2 and middle 3.
    """
    groups = [("Tr", f"lab_{i:02d}", i) for i in range(n_labelled)]
    groups += [("Un", f"un_{i:02d}", 100 + i) for i in range(n_unlabelled)]
    groups += [("Ts", f"test_{i:02d}", 200 + i) for i in range(n_test)]
    where = {"spacing": spacing, "origin": origin}
    for group, case, seed in groups:
        image, label = two_sided_phantom(seed, size) if two_sided else phantom(seed, size, amplitude, channels)
        for channel, array in enumerate(image):
            write_volume(array, folder / f"images{group}" / f"{case}_{channel:04d}{ending}", **where)
        if ignore:
            label[:2] = 3
        if group != "Un":
            write_volume(label, folder / f"labels{group}" / f"{case}{ending}", **where)
    labels: dict[str, object] = {"background": 0}
    labels |= {"whole": [1, 2], "core": 2} if regions else {"shell": 1, "core": 2}
    labels |= {"ignore": 3} if ignore else {}
    labels = {"background": 0, "left": 1, "right": 2, "middle": 3} if two_sided else labels
    content = {
        "channel_names": {str(c): channel_name for c in range(channels)},
        "labels": labels,
        "numTraining": n_labelled,
        "file_ending": ending,
    } | ({"regions_class_order": [1, 2]} if regions else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
