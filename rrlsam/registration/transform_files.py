"""A pair's transform as files that ITK, ANTs and Slicer read as they are, named as antsRegistration names them."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Geometry, geometry_of, itk_affine
from rrlsam.nets.jacobian import JacobianNumbers, jacobian_numbers
from rrlsam.registration.pair import PairTransform, field_image
from rrlsam.scans.volume import channels_first, read_field, require_regular_file, same_grid, write_image
from rrlsam.system.files import atomic_write, require_room
from rrlsam.system.jsonio import load_json, record, save_json

SCHEMA = 1
CONVENTION = (
    "A point x of the fixed scan is found at affine(x + field(x)) in the moving scan. World LPS, millimetres. "
    "antsApplyTransforms: -t WARP -t AFFINE. Back: -t [AFFINE,1] -t INVERSEWARP."
)
ENDINGS = {
    "affine": "_0GenericAffine.mat",
    "warp": "_1Warp.nii.gz",
    "inverse_warp": "_1InverseWarp.nii.gz",
    "composite": "_Composite.h5",
}
"""What follows the case in the names of a transform's files, as antsRegistration has it."""
DESCRIPTION_ENDING = "_Transform.json"
_AROUND_A_FIELD = 1 << 16
"""Bytes that ITK writes around a field, or for an affine, at most."""
MOST_CHECKED = 1 << 20
"""Voxels at which the inverse is checked."""


@record
class TransformDescription:
    """CASE_Transform.json: which scan is which, and what the other files mean."""

    schema: int
    fixed_name: str
    moving_name: str
    convention: str
    units: str
    files: dict[str, str]
    """affine, warp, inverse_warp, composite: names of files in the same folder."""
    fixed: Geometry
    moving: Geometry
    method: str
    """The model, or how the field was optimised."""
    alignment: str
    """How the affine alignment ended: affine or centre."""
    refinement_iterations: int
    jacobian: JacobianNumbers
    """Of x -> x + field(x) on the fixed scan's grid."""
    inverse_jacobian: JacobianNumbers
    inverse_error_median_vox: float
    """Of where forth and back leads, in voxels of the fixed grid, over the fixed scan's foreground."""
    inverse_error_99_vox: float
    seconds: float
    """Time of the registration, without reading and writing."""
    likeness: float | None = None
    """Correlation of the registered scans' intensities; near 0 or negative: hardly of one kind. None: unknown."""


def save_transform(
    transform: PairTransform,
    prefix: Path,
    *,
    fixed_name: str,
    moving_name: str,
    method: str,
    alignment: str,
    refinement_iterations: int,
    seconds: float,
    body: np.ndarray,
    likeness: float | None,
) -> TransformDescription:
    """Write PREFIX_0GenericAffine.mat and its companions; `body` (z, y, x) marks where the inverse is checked."""
    paths = {kind: prefix.with_name(prefix.name + ending) for kind, ending in ENDINGS.items()}
    write_image(field_image(transform.field, transform.fixed), paths["warp"])
    write_image(field_image(transform.inverse_field, transform.fixed), paths["inverse_warp"])
    _write_transform(itk_affine(transform.affine), paths["affine"], _AROUND_A_FIELD)
    _write_transform(transform.to_sitk(), paths["composite"], transform.field.size * 8 + _AROUND_A_FIELD)
    errors = inverse_errors(transform, body)
    description = TransformDescription(
        schema=SCHEMA,
        fixed_name=fixed_name,
        moving_name=moving_name,
        convention=CONVENTION,
        units="mm",
        files={kind: path.name for kind, path in paths.items()},
        fixed=transform.fixed,
        moving=transform.moving,
        method=method,
        alignment=alignment,
        refinement_iterations=refinement_iterations,
        jacobian=jacobian_numbers(transform.field_in_voxels()),
        inverse_jacobian=jacobian_numbers(transform.field_in_voxels(inverse=True)),
        inverse_error_median_vox=float(np.median(errors)),
        inverse_error_99_vox=float(np.percentile(errors, 99)),
        seconds=seconds,
        likeness=likeness,
    )
    save_json(description, prefix.with_name(prefix.name + DESCRIPTION_ENDING))
    return description


def load_transform(path: Path) -> tuple[PairTransform, TransformDescription]:
    """Read a transform back by its CASE_Transform.json."""
    description = load_json(TransformDescription, path)
    names = {kind: description.files.get(kind, "") for kind in ENDINGS}
    if any(Path(name).name != name or not name for name in names.values()):
        raise BadInputError(f"{path}: files must name one file each of {', '.join(ENDINGS)}, in the same folder")
    affine = _read_affine(path.with_name(names["affine"]))
    fields = [_read_field(path.with_name(names[kind]), description.fixed) for kind in ("warp", "inverse_warp")]
    transform = PairTransform(
        fixed=description.fixed, moving=description.moving, affine=affine, field=fields[0], inverse_field=fields[1]
    )
    return transform, description


def inverse_errors(transform: PairTransform, body: np.ndarray) -> np.ndarray:
    """How far forth and back leads from voxels of `body` (z, y, x), in voxels of the fixed grid.

    Of more than MOST_CHECKED, as many are taken, evenly spread.
    """
    from scipy.ndimage import map_coordinates

    there, back = transform.field_in_voxels(), transform.field_in_voxels(inverse=True)
    inside = np.flatnonzero(body) if body.any() else np.arange(body.size)
    voxels = np.stack(np.unravel_index(inside[:: -(-len(inside) // MOST_CHECKED)], body.shape))
    gone = there[:, *voxels]
    reached = voxels + gone[::-1]
    returned = np.stack([map_coordinates(part, reached, order=1, mode="nearest") for part in back])
    return np.linalg.norm(gone + returned, axis=0)


def _read_affine(path: Path) -> np.ndarray:
    require_regular_file(path)
    try:
        transform = sitk.AffineTransform(sitk.ReadTransform(str(path)))
    except RuntimeError as error:
        raise BadInputError(f"{path}: no affine transform can be read from it; register again") from error
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    if not np.isfinite(matrix).all():
        raise BadInputError(f"{path}: holds NaN or infinite numbers; register again")
    return matrix


def _read_field(path: Path, grid: Geometry) -> np.ndarray:
    image = read_field(path)
    if not same_grid(geometry_of(image), grid):
        raise BadInputError(f"{path}: its grid is not that of the fixed scan in the description; register again")
    return np.ascontiguousarray(channels_first(image), dtype=np.float32)


def _write_transform(transform: sitk.Transform, path: Path, n_bytes: int) -> None:
    """Write a file of at most so many bytes."""
    with atomic_write(path) as temporary:
        require_room(temporary, n_bytes)  # HDF5 ends the process where the disk is full
        try:
            sitk.WriteTransform(transform, str(temporary))
            if path.suffix == ".mat":  # of which ITK does not tell when it could not be written
                sitk.ReadTransform(str(temporary))
        except RuntimeError as error:
            raise ResourceError(f"{path}: could not be written whole; is the disk full?") from error
