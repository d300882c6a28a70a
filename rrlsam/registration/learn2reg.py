"""Displacement fields as the Learn2Reg challenge stores them."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrlsam.errors import BadInputError, UsageError
from rrlsam.geometry import Geometry, index_map
from rrlsam.registration.pair import PairTransform
from rrlsam.scans.volume import same_grid
from rrlsam.system.files import atomic_write


def learn2reg_name(fixed: str, moving: str, *, short: bool = False) -> str:
    """disp_FFFF_ffff_MMMM_mmmm.nii.gz by subject and modality of two scans; or disp_FFFF_MMMM.

    A case's last number is its subject, modality 0000; but NAME_SSSS_mmmm is modality mmmm of subject SSSS.
    """
    numbers = [_numbers(case) for case in (fixed, moving)]
    return f"disp_{'_'.join(subject if short else f'{subject}_{kind}' for subject, kind in numbers)}.nii.gz"


def require_distinct_names(cases: Sequence[str], moving: str, *, short: bool = False) -> None:
    """UsageError if the fields of two fixed scans would have one name; a scan without a number fails by itself."""
    named: dict[str, str] = {}
    for case in cases:
        try:
            name = learn2reg_name(case, moving, short=short)
        except UsageError:
            continue
        if name in named:
            raise UsageError(f"{named[name]} and {case}: both fields would be {name}; give one of them another number")
        named[name] = case


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


def _numbers(case: str) -> tuple[str, str]:
    """Subject and modality, four digits each."""
    if both := re.search(r"(?<!\d)(\d{4})_(\d{4})$", case):
        return both[1], both[2]
    digits = re.search(r"(\d+)\D*$", case)
    if not digits or int(digits[1]) > 9999:
        raise UsageError(f"{case}: Learn2Reg names need a case name that ends in a number of at most four digits")
    return f"{int(digits[1]):04d}", "0000"
