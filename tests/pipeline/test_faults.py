"""Bad files, one a row: what is spoilt, by which command it is met, its exit code and the words of its message.

The names in brackets are those of the catalogue of faults that the project began with.
"""

import gzip
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest

Spoil = Callable[[Path], object]


class Fault(NamedTuple):
    """A row of the tables."""

    case: str
    spoil: Spoil
    code: int
    words: tuple[str, ...]


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the voxels of a NIfTI file."""
    image: Any = nibabel.load(path)
    array = edit(np.asarray(image.dataobj).copy())
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)


def move(path: Path, affine: np.ndarray) -> None:
    """Multiply a NIfTI file's affine from the left."""
    image: Any = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine @ image.affine), path)


def header(path: Path, offset: int, value: np.ndarray) -> None:
    """Overwrite a few bytes of the header."""
    image: Any = nibabel.load(path)
    raw = bytearray(image.to_bytes())
    raw[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(gzip.compress(raw))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 16
    path.write_bytes(whole)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def mark(array: np.ndarray, value: float) -> np.ndarray:
    array[2, 2, 2] = value
    return array


def remove(path: Path) -> None:
    path.unlink()


NAN = float("nan")
SHEAR = np.eye(4) + 0.1 * np.eye(4, k=1) * np.array([1, 0, 0, 0])[:, None]
BAD_SCANS = (
    Fault("A2 cut", cut, 6, ("cut short", "copy it again")),
    Fault("A4 a flipped bit", flip, 6, ("corrupt",)),
    Fault("A5 empty", lambda p: p.write_bytes(b""), 6, ("empty",)),
    Fault("A13 one NaN", lambda p: change(p, lambda a: mark(a, NAN)), 6, ("NaN",)),
    Fault("A14 only NaN", lambda p: change(p, lambda a: np.full_like(a, NAN)), 6, ("NaN",)),
    Fault("A16 claims 32000 voxels", lambda p: header(p, 42, np.array([32000] * 3, "<i2")), 6, ("claims",)),
    Fault("A17 no slices", lambda p: header(p, 46, np.array(0, "<i2")), 6, ("test_00_0000.nii.gz",)),
    Fault("A20 complex", lambda p: change(p, lambda a: a.astype(np.complex64)), 6, ("single real numbers",)),
    Fault("B11 sheared", lambda p: move(p, SHEAR), 6, ("right angles",)),
    Fault("B14 spacing 0", lambda p: header(p, 80, np.array(0, "<f4")), 6, ("spacing", "pixdim")),
    Fault("B17 four-dimensional", lambda p: change(p, lambda a: np.stack([a] * 20, -1)), 6, ("split it",)),
    Fault("B18 one slice", lambda p: change(p, lambda a: a[..., :1]), 6, ("two-dimensional",)),
    Fault("E12 a FIFO", fifo, 6, ("not a regular file",)),
    Fault("E12 a folder", folder, 6, ("not a regular file",)),
)
BAD_IMAGES = (
    Fault("A1 cut", cut, 3, ("cut short", "copy it again")),
    Fault("A4 a flipped bit", flip, 3, ("corrupt",)),
    Fault("A5 empty", lambda p: p.write_bytes(b""), 3, ("empty",)),
    Fault("A13 one NaN", lambda p: change(p, lambda a: mark(a, NAN)), 3, ("NaN",)),
    Fault("B3 5 mm beside its label", lambda p: move(p, np.eye(4) + 5 * np.eye(4, k=3)), 3, ("origin",)),
    Fault("B17 four-dimensional", lambda p: change(p, lambda a: np.stack([a] * 20, -1)), 3, ("split it",)),
    Fault("C14 another ending", lambda p: p.rename(p.with_name("lab_00_0000.nrrd")), 3, ("does not end in",)),
    Fault("C16 no channel", lambda p: p.rename(p.with_name("lab_00.nii.gz")), 3, ("rename it to lab_00_0000",)),
    Fault("E12 a FIFO", fifo, 3, ("not a regular file",)),
    Fault("E12 a folder", folder, 3, ("not a regular file",)),
)
BAD_LABELS = (
    Fault("A1 cut", cut, 3, ("cut short",)),
    Fault("B2 other spacing", lambda p: move(p, np.diag([1.1, 1, 1, 1])), 3, ("spacing",)),
    Fault("C1 undeclared value", lambda p: change(p, lambda a: mark(a, 7)), 3, ("7 (1 voxels)", "declare")),
    Fault("C4 negative", lambda p: change(p, lambda a: mark(a.astype(np.int16), -1)), 3, ("-1",)),
    Fault("C8 only background", lambda p: change(p, np.zeros_like), 3, ("only background",)),
    Fault("E12 a FIFO", fifo, 3, ("not a regular file",)),
    Fault("D1 no label at all", remove, 3, ("no scan has a label",)),
)


def assert_told(answer: Any, fault: Fault) -> None:
    assert answer.code == fault.code, answer.err
    assert "Traceback" not in answer.err
    for words in fault.words:
        assert words in answer.err


@pytest.mark.parametrize("fault", BAD_SCANS, ids=lambda fault: fault.case)
def test_a_bad_scan_fails_alone_and_soon(trained, tmp_path, fault):
    shutil.copytree(trained.dataset / "imagesTs", tmp_path / "in")
    fault.spoil(tmp_path / "in" / "test_00_0000.nii.gz")
    began = time.monotonic()
    quick = ("-f", "0", "--disable_tta", "--refine", "0")
    answer = trained.predict(tmp_path / "in", tmp_path / "out", *quick)
    assert_told(answer, fault)
    assert answer.err.splitlines()[-1].startswith("rrlsam_predict: 1 of 2 scans failed: ")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["test_01.nii.gz"]
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        *(pytest.param("imagesTr/lab_00_0000.nii.gz", fault, id=f"image {fault.case}") for fault in BAD_IMAGES),
        *(pytest.param("labelsTr/lab_00.nii.gz", fault, id=f"label {fault.case}") for fault in BAD_LABELS),
    ],
)
def test_a_bad_data_set_is_refused_before_anything_is_written(make_project, place, fault):
    project = make_project(n_labelled=1, n_unlabelled=1)
    fault.spoil(project.dataset / place)
    answer = project.plan()
    assert_told(answer, fault)
    assert not list(project.prepared.rglob("plan.json"))
