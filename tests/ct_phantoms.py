"""CT scans of one small body in Hounsfield units, defined in the world and sampled on every scanner's own grid."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

CENTRE_MM = np.array([10.0, -20.0, 300.0])
"""Middle of the body, LPS."""
STRUCTURES = {"Left-Lung": 1, "Right-Lung": 2}
AIR, SOFT, LUNG, BONE = -1000.0, 40.0, -850.0, 700.0


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """A grid and the habits of a machine."""

    size: tuple[int, int, int] = (58, 46, 20)
    """Voxels x, y, z."""
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 5.0)
    tilt_degrees: float = 0.0
    """Rotation about the x axis, as of a tilted gantry."""
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the field of view against the body."""
    padding: int | None = None
    """Value outside the circle of reconstruction."""
    metal: int | None = None
    """Value of a small implant."""

    def grid(self) -> sitk.Image:
        """An empty scan."""
        image = sitk.Image(self.size, sitk.sitkInt16)
        image.SetSpacing(self.spacing_mm)
        angle = np.deg2rad(self.tilt_degrees)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        image.SetDirection(turn.ravel().tolist())
        middle = turn @ (np.array(self.spacing_mm) * (np.array(self.size) - 1) / 2)
        image.SetOrigin((CENTRE_MM + self.shift_mm - middle).tolist())
        return image


ATLAS = Scanner()
SCANNERS = {
    "un_00": Scanner(padding=-2000),
    "un_01": Scanner(padding=-3024, shift_mm=(3.0, -2.0, 4.0)),
    "un_02": Scanner(tilt_degrees=15, metal=3071),
    "test_00": Scanner(tilt_degrees=-12, padding=-3024, metal=3071),
    "test_01": Scanner(size=(44, 40, 30), spacing_mm=(1.0, 1.0, 3.0), shift_mm=(1.0, 2.0, 6.0), metal=20000),
}
"""Every scan but the atlas."""


def ct_phantom(seed: int, scanner: Scanner) -> tuple[sitk.Image, sitk.Image]:
    """Scan (int16) and label (uint8); seed 0 is the body at rest, others are bent by up to 3 mm and breathe."""
    image = scanner.grid()
    matrix = np.array(image.GetDirection()).reshape(3, 3) * scanner.spacing_mm
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in scanner.size[::-1]), indexing="ij")
    points = np.stack([x, y, z], -1) @ matrix.T + image.GetOrigin() - CENTRE_MM
    body = _at_rest(points, seed)

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return (((body - centre) / radii) ** 2).sum(-1) <= 1

    trunk = (body[..., 0] / 20) ** 2 + (body[..., 1] / 15) ** 2 <= 1
    left, right = ellipsoid((8.5, -1, 2), (6.5, 9, 34)), ellipsoid((-8.5, -1, 0), (7.5, 9.5, 36))
    spine = trunk & ((body[..., 0] / 3) ** 2 + ((body[..., 1] - 11) / 3) ** 2 <= 1)
    heart = ellipsoid((2, -4, -16), (7, 6, 12))
    lungs = (left | right) & ~heart
    units = np.select([lungs, spine, trunk], [LUNG, BONE, SOFT], AIR)
    units = units + np.random.default_rng(1000 + seed).normal(0, 15, units.shape)
    if scanner.metal is not None:
        units[ellipsoid((0, -12, 10), (1.5, 1.5, 6))] = scanner.metal
    if scanner.padding is not None:
        half = scanner.size[0] / 2
        circle = ((x - half + 0.5) / half) ** 2 + ((y - scanner.size[1] / 2 + 0.5) / half) ** 2 <= 0.85
        units[~circle] = scanner.padding
    scan = sitk.GetImageFromArray(np.clip(units, -32768, 32767).round().astype(np.int16))
    label = sitk.GetImageFromArray((np.where(left, 1, 2) * lungs).astype(np.uint8))
    for made in (scan, label):
        made.CopyInformation(image)
    return scan, label


def _at_rest(points: np.ndarray, seed: int) -> np.ndarray:
    """Points of the body at rest for points (..., x y z) of a bent one, mm from its middle."""
    if seed == 0:
        return points
    random = np.random.default_rng(seed)
    phases, sizes = random.uniform(0, 2 * np.pi, (2, 3))[0], random.uniform(1.5, 3.0, 3)
    waves = np.stack([np.sin(points[..., (axis + 2) % 3] / 14 + phases[axis]) for axis in range(3)], -1)
    return points * random.uniform(0.93, 1.07, 3) + sizes * waves


def make_ct_dataset(folder: Path) -> Path:
    """Write a raw data set: the atlas lab_00, three unlabelled scans and two tests; returns `folder`."""
    for seed, (case, scanner) in enumerate({"lab_00": ATLAS, **SCANNERS}.items()):
        group = {"lab": "Tr", "un": "Un", "test": "Ts"}[case.split("_")[0]]
        scan, label = ct_phantom(seed, scanner)
        files = {folder / f"images{group}" / f"{case}_0000.nii.gz": scan}
        files |= {} if group == "Un" else {folder / f"labels{group}" / f"{case}.nii.gz": label}
        for path, image in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(path))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **STRUCTURES},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
