"""Displacement fields as the Learn2Reg challenge stores them."""

import re
from pathlib import Path

import numpy as np

from rrlsam.errors import BadInputError, UsageError
from rrlsam.geometry import Geometry, index_map
from rrlsam.registration.pair import PairTransform
from rrlsam.scans.volume import same_grid
from rrlsam.system.files import atomic_write


def learn2reg_name(fixed: str, moving: str, *, short: bool = False) -> str:
    """disp_FFFF_ffff_MMMM_mmmm.nii.gz by the numbers that end two case names, modality 0000 each; or disp_FFFF_MMMM."""
    numbers = [_number(case) for case in (fixed, moving)]
    return f"disp_{numbers[0]}_{numbers[1]}.nii.gz" if short else f"disp_{numbers[0]}_0000_{numbers[1]}_0000.nii.gz"


def check_learn2reg(fixed: str, moving: str, fixed_grid: Geometry, moving_grid: Geometry) -> None:
    """Raise what would keep a field of two scans from being stored, before it is computed."""
    learn2reg_name(fixed, moving)
    _require_one_grid(fixed_grid, moving_grid)


def learn2reg_field(transform: PairTransform) -> np.ndarray:
    """(x, y, z, 3), voxels of the fixed grid, the affine folded in: moving is read at index + displacement.

    Only defined for scans of one grid; BadInputError otherwise.
    """
    _require_one_grid(transform.fixed, transform.moving)
    z, y, x = np.indices(transform.fixed.shape)
    index = np.stack([x, y, z]).astype(np.float64)
    moved = index + transform.field_in_voxels()
    matrix = index_map(transform.fixed, transform.moving, transform.affine)
    reached = np.einsum("ij,jzyx->izyx", matrix[:3, :3], moved) + matrix[:3, 3].reshape(3, 1, 1, 1)
    return np.ascontiguousarray((reached - index).transpose(3, 2, 1, 0), dtype=np.float32)


def save_learn2reg(transform: PairTransform, path: Path) -> None:
    """Write a field as the evaluators expect it: float32, 4-D, identity affine, no intent."""
    import nibabel

    field = learn2reg_field(transform)
    with atomic_write(path) as temporary:
        nibabel.save(nibabel.Nifti1Image(field, np.eye(4)), temporary)


def _require_one_grid(fixed: Geometry, moving: Geometry) -> None:
    if not same_grid(fixed, moving):
        raise BadInputError(
            "Learn2Reg fields need fixed and moving scans on one grid "
            f"(here {fixed.shape} and {moving.shape}, z, y, x); resample one to the other first"
        )


def _number(case: str) -> str:
    digits = re.search(r"(\d+)\D*$", case)
    if not digits or int(digits[1]) > 9999:
        raise UsageError(f"{case}: Learn2Reg names need a case name that ends in a number of at most four digits")
    return f"{int(digits[1]):04d}"
