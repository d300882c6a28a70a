"""FreeSurfer's volumes, .mgz and .mgh, as SimpleITK images."""

import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.geometry import make_geometry, to_sitk
from rrlsam.scans.place import SHEARED

ENDINGS = (".mgz", ".mgh")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_mgh(path: Path, most_voxels: int) -> sitk.Image:
    """Read a volume of one frame; BadInputError for a broken file, several frames, a sheared grid or NaN."""
    from nibabel.freesurfer.mghformat import MGHError, MGHImage

    try:
        stored = MGHImage.from_filename(path)
        shape = tuple(int(n) for n in stored.shape)
        if not 0 < int(np.prod(shape, dtype=object)) <= most_voxels:
            raise BadInputError(f"{path}: the header claims an impossible size {shape}")
        array = np.asanyarray(stored.dataobj)
    except (OSError, EOFError, ValueError, TypeError, zlib.error, MGHError) as error:
        raise BadInputError(
            f"{path}: corrupt, cut short or not a FreeSurfer volume ({str(error)[:160]}); copy it again"
        ) from error
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    if array.ndim != 3:
        raise BadInputError(f"{path}: holds {shape[-1]} frames; split it into 3-D volumes")
    if not np.isfinite(array).all():
        raise BadInputError(f"{path}: holds NaN or infinite voxels; replace them by real intensities")
    matrix = _RAS_TO_LPS @ np.asarray(stored.affine, dtype=np.float64)
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise BadInputError(f"{path}: {SHEARED}")
    values = np.ascontiguousarray(array.T.astype(array.dtype.newbyteorder("=")))
    return to_sitk(values, make_geometry(values.shape, matrix))
