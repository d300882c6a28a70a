"""Images, labels and points through a pair's transform."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import find_objects

from rrlsam.errors import BadInputError
from rrlsam.geometry import Geometry, Size3, geometry_of, to_sitk
from rrlsam.preprocessing.resample import empty_image
from rrlsam.registration.pair import PairTransform
from rrlsam.scans.volume import label_dtype
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import read_whole

_LEAST = 1e-6


def warp_image(
    image: sitk.Image, transform: PairTransform, *, inverse: bool = False, onto: Geometry | None = None
) -> sitk.Image:
    """The moving image on the fixed grid (inverse: the other way), linearly interpolated; 0 beyond the image."""
    return sitk.Resample(
        image,
        empty_image(onto or (transform.moving if inverse else transform.fixed)),
        transform.inverse_to_sitk() if inverse else transform.to_sitk(),
        sitk.sitkLinear,
        0.0,
        sitk.sitkVectorFloat32 if "vector" in image.GetPixelIDTypeAsString() else sitk.sitkFloat32,
    )


def warp_labels(
    labels: sitk.Image, transform: PairTransform, *, inverse: bool = False, onto: Geometry | None = None
) -> sitk.Image:
    """Labels likewise: at each voxel the largest of the linearly interpolated classes; no other value appears."""
    values, labels = _numbered(labels)
    grid = onto or (transform.moving if inverse else transform.fixed)
    way = transform.inverse_to_sitk() if inverse else transform.to_sitk()
    boxes = _boxes(labels, way, grid)
    best, chosen = np.full(grid.shape, _LEAST, np.float32), np.zeros(grid.shape, np.int32)
    for number in range(len(values)):
        start, stop = boxes.get(number, ((0, 0, 0), grid.shape))
        part = empty_image(grid.box(start, stop))
        mask = sitk.Cast(labels == number, sitk.sitkFloat32)
        share = sitk.GetArrayFromImage(sitk.Resample(mask, part, way, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
        box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))
        chosen[box][share > best[box]] = number
        best[box] = np.maximum(best[box], share)
    return to_sitk(values[chosen], grid)


def _numbered(labels: sitk.Image) -> tuple[np.ndarray, sitk.Image]:
    """The values that occur, background first, and the labels as indices of these: values may be huge."""
    array = sitk.GetArrayViewFromImage(labels)
    values = np.unique(array)
    if values[0] < 0:
        raise BadInputError(f"the labels hold {values[0]}; label values must not be negative")
    values = values if values[0] == 0 else np.concatenate([[0], values])
    numbers = np.searchsorted(values, array).astype(np.int32)
    return values.astype(label_dtype(int(values[-1]))), to_sitk(numbers, geometry_of(labels))


def _boxes(labels: sitk.Image, way: sitk.Transform, grid: Geometry) -> dict[int, tuple[Size3, Size3]]:
    """Where on a grid each structure may arrive: around its nearest-neighbour image, a few voxels wider.

    A structure that this image misses has no box; it may arrive anywhere.
    """
    ratio = np.max(labels.GetSpacing()) / np.array(grid.spacing_mm)
    margin = np.ceil(3 * np.maximum(ratio, 1)).astype(int)
    nearest = sitk.Resample(labels, empty_image(grid), way, sitk.sitkNearestNeighbor, 0, labels.GetPixelID())
    found = {}
    for number, slices in enumerate(find_objects(sitk.GetArrayFromImage(nearest)), start=1):
        if slices is not None:
            start = tuple(int(max(s.start - m, 0)) for s, m in zip(slices, margin, strict=True))
            stop = tuple(int(min(s.stop + m, n)) for s, m, n in zip(slices, margin, grid.shape, strict=True))
            found[number] = (start, stop)
    return found


def warp_points(points: Sequence[Sequence[float]], transform: PairTransform, *, inverse: bool = False) -> np.ndarray:
    """Points (n, 3) of the moving scan to where they lie in the fixed one (inverse: the other way); LPS mm.

    Points move against images: what pulls images from moving to fixed carries points from fixed to moving.
    """
    carried = transform.to_sitk() if inverse else transform.inverse_to_sitk()
    return np.array([carried.TransformPoint([float(v) for v in point]) for point in points]).reshape(-1, 3)


def read_points(path: Path) -> tuple[list[str], list[list[str]], np.ndarray]:
    """Header, rows and the points (n, 3) of a CSV file with columns x, y, z in LPS mm; empty lines are left out."""
    expected = "not a CSV file with columns x, y, z of finite numbers (LPS mm) under a header"
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: {expected}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header, rows, points = next(reader), [], []
        columns = [[name.strip().lower() for name in header].index(axis) for axis in "xyz"]
        for row in reader:
            if any(cell.strip() for cell in row):
                points.append([_finite(row[c]) for c in columns])
                rows.append(row)
    except (ValueError, IndexError, StopIteration, csv.Error) as error:
        raise BadInputError(f"{path}: line {max(reader.line_num, 1)}: {expected}") from error
    return header, rows, np.array(points, dtype=np.float64).reshape(-1, 3)


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError("not finite")
    return value


def write_points(header: list[str], rows: list[list[str]], points: np.ndarray, path: Path) -> None:
    """The same rows with other coordinates."""
    columns = [[name.strip().lower() for name in header].index(axis) for axis in "xyz"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row, point in zip(rows, points, strict=True):
            changed = list(row)
            for column, value in zip(columns, point, strict=True):
                changed[column] = f"{value:.6f}"
            writer.writerow(changed)
