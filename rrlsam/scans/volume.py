"""Reading and writing scans and masks, with the checks that image readers leave out.

SimpleITK reads a cut NIfTI as zeros, hides non-finite voxels and reports success on a full disk; hence every file's
bytes are walked before SimpleITK sees it, and every written file is read back.
"""

import contextlib
import errno
import logging
import math
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError, ResourceError, UsageError
from rrlsam.geometry import Geometry, geometry_of
from rrlsam.scans.mgh import ENDINGS as MGH_ENDINGS
from rrlsam.scans.mgh import read_mgh
from rrlsam.scans.nifti_walk import MAX_VOXELS, MOST_PACKED, stored_voxels, walk_nifti
from rrlsam.scans.place import SHEARED, require_place
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.system.files import atomic_write, is_clutter, sha256, spelt
from rrlsam.system.resources import require_memory
from rrlsam.system.shortage import shortages_told

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""File endings that can be read and written."""

BYTES_A_VOXEL = 40
"""Memory that reading and preparing a scan takes at its peak, for each voxel of each channel (measured)."""
_CANONICAL = "LPS"
_log = logging.getLogger(__name__)


def ending_of(path: Path) -> str:
    """The supported ending of a file name; BadInputError for any other."""
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return ending
    raise BadInputError(f"{path}: unknown file ending; one of {', '.join(ENDINGS)} is needed")


def require_image_name(path: Path, option: str = "-o") -> None:
    """UsageError for a result that is to be an image and whose name has no supported ending."""
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"{option} {path}: must end in one of {', '.join(ENDINGS)}; give another name")


def content_of(*paths: Path) -> str:
    """SHA-256 of files' contents; BadInputError for one that is missing, empty or no regular file."""
    for path in paths:
        require_regular_file(path)
    with _unreadable_told(paths):
        return sha256(*paths)


def files_by_name(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their names without the ending; BadInputError where two have one name."""
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(ENDINGS) and not is_clutter(path):
            name = path.name.removesuffix(ending_of(path))
            if name in files:
                raise BadInputError(f"{folder}: {files[name].name} and {path.name} have one name; remove one of them")
            files[name] = path
    return files


def read_image(path: Path) -> sitk.Image:
    """Read a scalar 3-D image in its own grid; whatever is wrong with the file ends in BadInputError."""
    image = _read_scalar(path)
    require_finite(path, image)
    return image


def _read_scalar(path: Path) -> sitk.Image:
    image = _read(path)
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise BadInputError(
            f"{path}: voxels must be single real numbers, not {image.GetPixelIDTypeAsString()}; "
            "convert them, or give every component a file of its own"
        )
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise BadInputError(
            f"{path}: {image.GetDimension()}-D image of size {image.GetSize()}; split it into 3-D volumes"
        )
    if min(image.GetSize()) < 2:
        raise BadInputError(f"{path}: size {image.GetSize()} is two-dimensional; only 3-D volumes are supported")
    return image


def read_field(path: Path) -> sitk.Image:
    """Read a displacement field as ITK stores it: a 3-D image of vectors in LPS mm."""
    image = _read(path)
    require_finite(path, image)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise BadInputError(
            f"{path}: is no field of 3 displacements a voxel ({image.GetNumberOfComponentsPerPixel()} value(s) in "
            f"{image.GetDimension()} dimensions); a NIfTI field must be (x, y, z, 1, 3) with intent code 1007"
        )
    return image


def _read(path: Path) -> sitk.Image:
    require_regular_file(path)
    if path.name.endswith(MGH_ENDINGS):
        return read_mgh(path, MAX_VOXELS)
    nonfinite = 0
    if path.name.endswith((".nii", ".nii.gz")):
        with _unreadable_told((path,)):
            nonfinite = walk_nifti(path, lambda voxels: _require_memory(path, voxels))
    else:
        voxels = claimed_voxels(path)
        if voxels > min(MAX_VOXELS, MOST_PACKED * path.stat().st_size):
            raise BadInputError(f"{path}: the header claims {voxels:,} voxels, more than it can hold; copy it again")
        _require_memory(path, voxels)
    try:
        with shortages_told():
            sitk.ProcessObject.GlobalWarningDisplayOff()  # what is odd about a header is told by our own checks
            image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise BadInputError(f"{path}: {_reason(str(error))}") from error
    require_place(path, image)
    return _with_nonfinite(path, image) if nonfinite else image


def _with_nonfinite(path: Path, image: sitk.Image) -> sitk.Image:
    """The NaN and infinite voxels of a NIfTI file, which SimpleITK reads as 0, put back."""
    stored, array = stored_voxels(path), sitk.GetArrayFromImage(image)
    if stored.size != array.size:
        raise BadInputError(f"{path}: holds NaN or infinite voxels; replace them by real values")
    wrong = ~np.isfinite(stored.reshape(array.shape))
    array[wrong] = stored.reshape(array.shape)[wrong]
    restored = sitk.GetImageFromArray(array, isVector=image.GetNumberOfComponentsPerPixel() > 1)
    restored.CopyInformation(image)
    return restored


def require_finite(path: Path, image: sitk.Image, remedy: str = "replace them by real values") -> None:
    """BadInputError, with that remedy, for an image with voxels that are not finite."""
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise BadInputError(f"{path}: holds NaN or infinite voxels; {remedy}")


def claimed_voxels(path: Path) -> int:
    """How many voxels a file's header claims; 0 where it cannot be read."""
    if not path.is_file() or spelt(path) != str(path):
        return 0
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    return math.prod(int(n) for n in reader.GetSize())


def _require_memory(path: Path, voxels: int) -> None:
    require_memory(BYTES_A_VOXEL * voxels, str(path), "close other programs, or crop or resample the scan")


def read_channels(paths: tuple[Path, ...]) -> sitk.Image:
    """Read one file a channel into one float32 vector image; all must lie on one grid and be finite."""
    return read_mended(paths, NO_REPAIRS)[0]


def read_mended(paths: tuple[Path, ...], repairs: Repairs) -> tuple[sitk.Image, tuple[str, ...]]:
    """As read_channels, with what the user allowed mended; second, what was ("FILE: what was done")."""
    images, mended = [], []
    for path in paths:
        image = sitk.Cast(_read_scalar(path), sitk.sitkFloat32)
        _require_memory(path, (len(paths) - 1 - len(images)) * image.GetNumberOfPixels())
        if images and not same_grid(geometry_of(images[0]), geometry_of(image)):
            if not (repairs.allow_geometry_mismatch and image.GetSize() == images[0].GetSize()):
                problem = f"its grid differs from that of {paths[0].name}; channels must share one grid"
                raise BadInputError(f"{path}: {problem}")
            mended.append(f"{path}: its grid differs from that of {paths[0].name}; laid onto that, as was asked for")
        if images:
            image.CopyInformation(images[0])  # sitk.Compose forgives less rounding than same_grid
        if repairs.fix_nonfinite:
            image, count = _finite(path, image)
            mended += [f"{path}: {count} NaN or infinite voxels; replaced, as was asked for"] if count else []
        else:
            require_finite(path, image, "replace them by real intensities, or let --fix_nonfinite do it")
        images.append(image)
    return sitk.Compose(images), tuple(mended)


def read_telling(paths: tuple[Path, ...], repairs: Repairs) -> sitk.Image:
    """As read_mended; what was mended is logged."""
    image, mended = read_mended(paths, repairs)
    for text in mended:
        _log.warning("%s", text)
    return image


def _finite(path: Path, image: sitk.Image) -> tuple[sitk.Image, int]:
    """NaN and negative infinity become the smallest finite value, infinity the largest; second, how many did."""
    array = sitk.GetArrayFromImage(image)
    finite = np.isfinite(array)
    count = array.size - int(np.count_nonzero(finite))
    if count == 0:
        return image, 0
    if count == array.size:
        raise BadInputError(f"{path}: holds no finite voxel at all; export the scan again or remove it")
    low, high = float(array[finite].min()), float(array[finite].max())
    return image_like(np.nan_to_num(array, nan=low, neginf=low, posinf=high), image), count


def read_labels(path: Path) -> sitk.Image:
    """Read a label map as int32; values within 1e-3 of a whole number are rounded, others refused."""
    image = read_image(path)
    if image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64):
        values = sitk.GetArrayViewFromImage(image)
        if not (np.abs(values - np.rint(values)) <= 1e-3).all():
            raise BadInputError(f"{path}: label values must be whole numbers; save the label map as integers")
        image = sitk.Round(image)
    return sitk.Cast(image, sitk.sitkInt32)


def same_grid(a: Geometry, b: Geometry) -> bool:
    """Whether two grids agree within what files can store (1e-4 relative, 1e-3 mm absolute)."""
    ends = np.diag([*(n - 1.0 for n in a.shape[::-1]), 1.0])  # the last voxel of each axis, and the first of all
    ends[3] = 1.0
    return a.shape == b.shape and np.allclose(a.matrix @ ends, b.matrix @ ends, rtol=1e-4, atol=1e-3)


def to_canonical(image: sitk.Image) -> sitk.Image:
    """Permute and flip axes so that they run closest to left, posterior, superior (no interpolation)."""
    return sitk.DICOMOrient(image, _CANONICAL)


def orientation_of(image: sitk.Image) -> str:
    """The three-letter code of the directions in which the stored axes run, such as "RAS"."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def channels_first(image: sitk.Image) -> np.ndarray:
    """Array (c, z, y, x) of a scalar or vector image."""
    array = sitk.GetArrayFromImage(image)
    return array[None] if image.GetNumberOfComponentsPerPixel() == 1 and array.ndim == 3 else np.moveaxis(array, -1, 0)


def channels_of(image: sitk.Image) -> list[sitk.Image]:
    """The channels of an image as plain images."""
    if "vector" not in image.GetPixelIDTypeAsString():
        return [image]
    return [sitk.VectorIndexSelectionCast(image, i) for i in range(image.GetNumberOfComponentsPerPixel())]


def write_like(array: np.ndarray, reference: sitk.Image, path: Path) -> None:
    """Write a (z, y, x) array in exactly the grid of `reference`; the file appears whole or not at all."""
    write_image(image_like(array, reference), path)


def image_like(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    """An array (z, y, x) as an image in exactly the grid of another."""
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    return image


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image; the file appears whole or not at all."""
    _require_utf8(path)
    with atomic_write(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if path.name.endswith((".nii", ".nii.gz")):
                walk_nifti(temporary, lambda voxels: None)
        except (RuntimeError, BadInputError) as error:
            raise ResourceError(f"{path}: could not be written whole; is the disk full?") from error


def label_dtype(largest: int) -> type[np.unsignedinteger]:
    """uint8 below 255 labels, else uint16, as nnU-Net writes; uint32 for the numbers of large ontologies."""
    return np.uint8 if largest < 255 else np.uint16 if largest < 1 << 16 else np.uint32


@contextlib.contextmanager
def _unreadable_told(paths: tuple[Path, ...]) -> Iterator[None]:
    """What the system refuses while a file is read (no permission, a bad sector, a share that went) is its case's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the file is not to blame
        where = error.filename or ", ".join(map(str, paths))
        raise BadInputError(
            f"{where}: cannot be read ({error.strerror or error}); check permissions and disk"
        ) from error


def _require_utf8(path: Path) -> None:
    """SimpleITK ends the process at other names."""
    if spelt(path) != str(path):
        raise BadInputError(f"{spelt(path)}: the name is not UTF-8; rename it")


def require_regular_file(path: Path) -> None:
    """BadInputError for what SimpleITK must not be given: no file, an empty one, a pipe, a name that is no UTF-8."""
    _require_utf8(path)
    try:
        mode = path.stat()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); check its name and the disk") from error
    if not stat.S_ISREG(mode.st_mode):
        raise BadInputError(f"{path}: is not a regular file; replace it by an image")
    if mode.st_size == 0:
        raise BadInputError(f"{path}: the file is empty; copy it again from its source")


def _reason(message: str) -> str:
    """The telling line of a library's long message."""
    if "orthonormal" in message:
        return SHEARED
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    why = lines[-1][:160] if lines else "no reason given"
    return f"cannot be read, corrupt or of another format ({why}); copy or convert it again"
