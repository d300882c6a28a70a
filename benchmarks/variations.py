"""Data sets unlike those at hand, made of one of them: other orientations, fields of view, voxels, sizes, contrasts.

    python benchmarks/variations.py turned -d 35 --to 135 --raw RAW --out WORK/raw
    python benchmarks/one_shot.py -d 135 --raw WORK/raw ...        # and registration.py, beside all peers

Every scan is changed in its own way, a pure function of the seed and its name; its label goes with it. The result is a
raw data set in nnU-Net's layout, with the folders that the source has.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

from rrlsam.geometry import geometry_of, to_sitk
from rrlsam.scans.dataset import find_dataset, numbered
from rrlsam.scans.volume import read_image, read_labels, write_image

FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs", "imagesUn": None}
LARGEST_TURN, LARGEST_SHIFT_MM = 20.0, 15.0
"""About each axis in degrees, and along it."""
WIDER = 1.5
"""Field of view of a turned scan, over the longest edge of the source."""
SLICES_A_SLICE = 3
LARGEST_CUT = 0.25
SHRINKING = 0.06
"""A mouse's brain beside a human's."""
BIAS, GAMMA, NOISE = 0.3, 1.4, 0.03
"""Largest deviation of the bias field, of the exponent (as a factor), and deviation of noise over the image's."""

Pair = tuple[sitk.Image, "sitk.Image | None"]


def turned(image: sitk.Image, label: sitk.Image | None, random: np.random.Generator) -> Pair:
    """Turned and shifted in a cube of air; bias, gamma and noise."""
    grid = geometry_of(image)
    n = int(np.ceil(WIDER * max(grid.extent_mm) / min(grid.spacing_mm)))
    transform = sitk.AffineTransform(3)
    turn = Rotation.from_euler("xyz", random.uniform(-LARGEST_TURN, LARGEST_TURN, 3), degrees=True).as_matrix()
    transform.SetMatrix(turn.ravel().tolist())
    transform.SetCenter(grid.centre_mm.tolist())
    transform.SetTranslation(random.uniform(-LARGEST_SHIFT_MM, LARGEST_SHIFT_MM, 3).tolist())
    cube = sitk.Image([n] * 3, sitk.sitkFloat32)
    cube.SetSpacing([min(grid.spacing_mm)] * 3)
    cube.SetOrigin((grid.centre_mm - (n - 1) / 2 * min(grid.spacing_mm)).tolist())
    moved = sitk.Resample(image, cube, transform, sitk.sitkBSpline, 0.0, sitk.sitkFloat32)
    moved_label = None if label is None else sitk.Resample(label, cube, transform, sitk.sitkLabelGaussian, 0)
    return noisy(sitk.Clamp(moved, lowerBound=0.0), moved_label, random)


def noisy(image: sitk.Image, label: sitk.Image | None, random: np.random.Generator) -> Pair:
    """A smooth bias field, another gamma, and noise."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = array.min(), np.percentile(array, 99.9)
    scaled = np.clip((array - low) / (high - low), 0, None)
    knots = random.uniform(-BIAS, BIAS, (4, 4, 4))
    bias = zoom(knots, [n / 4 for n in array.shape], order=1, grid_mode=True, mode="nearest")
    scaled = scaled ** (GAMMA ** random.uniform(-1, 1)) * (1 + bias)
    scaled = np.abs(scaled + random.normal(0, NOISE, array.shape))  # a magnitude image has no negative voxels
    return to_sitk((1000 * scaled).astype(np.float32), geometry_of(image)), label


def thick(image: sitk.Image, label: sitk.Image | None, random: np.random.Generator) -> Pair:
    """Slices three times as thick: means of neighbours; a label goes by its middle slice."""
    edge = random.integers(SLICES_A_SLICE)  # where the first slice begins

    def cut(volume: sitk.Image, reduce: Callable[[np.ndarray], np.ndarray]) -> sitk.Image:
        grid, array = geometry_of(volume), sitk.GetArrayFromImage(volume)[edge:]
        n = len(array) // SLICES_A_SLICE
        made = sitk.GetImageFromArray(reduce(array[: n * SLICES_A_SLICE].reshape(n, SLICES_A_SLICE, *array.shape[1:])))
        made.SetSpacing((volume.GetSpacing()[0], volume.GetSpacing()[1], SLICES_A_SLICE * volume.GetSpacing()[2]))
        made.SetDirection(volume.GetDirection())
        first = [0, 0, edge + (SLICES_A_SLICE - 1) / 2, 1]
        made.SetOrigin((grid.matrix @ np.array(first))[:3].tolist())
        return made

    image = cut(image, lambda slices: slices.astype(np.float32).mean(1))
    return image, None if label is None else cut(label, lambda slices: slices[:, SLICES_A_SLICE // 2])


def small(image: sitk.Image, label: sitk.Image | None, random: np.random.Generator) -> Pair:
    """A body of a mouse's size, dark where it was bright; bias, gamma and noise."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    body = array > array.min()
    inverted = np.where(body, np.percentile(array, 99.9) - array, 0)
    dark = to_sitk(np.clip(inverted, 0, None).astype(np.float32), geometry_of(image))
    image, label = noisy(dark, label, random)
    for volume in (image, label):
        if volume is not None:
            volume.SetSpacing([SHRINKING * s for s in volume.GetSpacing()])
            volume.SetOrigin([SHRINKING * o for o in volume.GetOrigin()])
    return image, label


def cropped(image: sitk.Image, label: sitk.Image | None, random: np.random.Generator) -> Pair:
    """Another part of the body in every scan: up to a quarter is cut off at one end of each axis."""
    cuts = (random.uniform(0, LARGEST_CUT, 3) * image.GetSize()).astype(int)
    lower = np.where(random.random(3) < 0.5, cuts, 0)
    box = [slice(int(low), int(low + n - cut)) for low, n, cut in zip(lower, image.GetSize(), cuts, strict=True)]
    return image[tuple(box)], None if label is None else label[tuple(box)]


KINDS = {"turned": turned, "noisy": noisy, "thick": thick, "small": small, "cropped": cropped}


def main() -> None:
    """Write the varied data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("-d", required=True, help="number or name of the source")
    parser.add_argument("--to", type=int, required=True, help="number of the new data set")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="another raw folder, for the new data set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = find_dataset(arguments.raw, arguments.d)
    name = source.name.split("_", 1)[1] + arguments.kind.capitalize()
    folder = arguments.out / f"{numbered(arguments.to)}{name}"
    if folder.exists():
        raise SystemExit(f"{folder}: is there already; move it away, or choose another --to or --out")
    for images, labels in FOLDERS.items():
        for path in sorted((source / images).glob("*_0000.nii.gz")):
            case = path.name.removesuffix("_0000.nii.gz")
            truth = None if labels is None else source / labels / f"{case}.nii.gz"
            digest = hashlib.sha256(f"{arguments.seed} {case}".encode()).digest()
            random = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
            label = read_labels(truth) if truth is not None and truth.is_file() else None
            image, label = KINDS[arguments.kind](read_image(path), label, random)
            write_image(image, folder / images / path.name)
            if label is not None and labels is not None:
                write_image(label, folder / labels / f"{case}.nii.gz")
    shutil.copy(source / "dataset.json", folder / "dataset.json")


if __name__ == "__main__":
    main()
