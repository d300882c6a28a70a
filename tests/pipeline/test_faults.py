"""Bad files, one a row: what is spoilt, by which command it is met, its exit code and the words of its message.

The names in brackets are those of the catalogue of faults that the project began with.
"""

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest

from rrlsam.prediction import predict

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


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def of_second_format(path: Path) -> None:
    image: Any = nibabel.load(path)
    nibabel.save(nibabel.Nifti2Image(np.asarray(image.dataobj), image.affine), path)


def describe(**changes: object) -> Spoil:
    """Change entries of dataset.json."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    Fault("A2 cut within the header", lambda p: p.write_bytes(p.read_bytes()[:100]), 6, ("corrupt",)),
    Fault("A13 infinite", lambda p: change(p, lambda a: mark(a, float("inf"))), 6, ("NaN or infinite",)),
    Fault("A16 claims 13 GB", lambda p: header(p, 42, np.array([1500] * 3, "<i2")), 6, ("more than it can hold",)),
    Fault("A17 sizes below 0", lambda p: header(p, 42, np.array([-3] * 3, "<i2")), 6, ("test_00_0000.nii.gz",)),
    Fault("B14 spacing below 0", lambda p: header(p, 80, np.array(-1, "<f4")), 6, ("spacing", "pixdim")),
    Fault("no image at all", lambda p: p.write_text("<html>404</html>"), 6, ("corrupt or not a NIfTI file",)),
    Fault("E12 a FIFO", fifo, 6, ("not a regular file",)),
    Fault("E12 a folder", folder, 6, ("not a regular file",)),
    Fault("E12 a link to nowhere", dangle, 6, ("cannot be read (No such file",)),
    Fault("E12 a link to itself", loop, 6, ("cannot be read (Too many levels",)),
    Fault("a NIfTI-2 file", of_second_format, 6, ("is a NIfTI-2 file; save it as NIfTI-1",)),
    Fault("B14 spacing 1e30", lambda p: header(p, 80, np.full(3, 1e30, "<f4")), 6, ("cannot be",)),
    Fault("a place of NaN", lambda p: header(p, 280, np.full(12, NAN, "<f4")), 6, ("sform holds NaN",)),
    Fault("voxels of kind 0", lambda p: header(p, 70, np.array(0, "<i2")), 6, ("copy or convert it again",)),
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
    Fault("E12 a link to nowhere", dangle, 3, ("the file is missing",)),
    Fault("A16 claims 13 GB", lambda p: header(p, 42, np.array([1500] * 3, "<i2")), 3, ("more than it can hold",)),
    Fault("A20 complex", lambda p: change(p, lambda a: a.astype(np.complex64)), 3, ("single real numbers",)),
    Fault("B11 sheared", lambda p: move(p, SHEAR), 3, ("right angles",)),
    Fault("B14 spacing 0", lambda p: header(p, 80, np.array(0, "<f4")), 3, ("spacing", "pixdim")),
    Fault("B18 one slice", lambda p: change(p, lambda a: a[..., :1]), 3, ("two-dimensional",)),
)
BAD_LABELS = (
    Fault("A1 cut", cut, 3, ("cut short",)),
    Fault("B2 other spacing", lambda p: move(p, np.diag([1.1, 1, 1, 1])), 3, ("spacing",)),
    Fault("C1 undeclared value", lambda p: change(p, lambda a: mark(a, 7)), 3, ("7 (1 voxels)", "declare")),
    Fault("C4 negative", lambda p: change(p, lambda a: mark(a.astype(np.int16), -1)), 3, ("-1",)),
    Fault("C8 only background", lambda p: change(p, np.zeros_like), 3, ("only background",)),
    Fault("A4 a flipped bit", flip, 3, ("corrupt",)),
    Fault("A13 one NaN", lambda p: change(p, lambda a: mark(a.astype(np.float32), NAN)), 3, ("NaN",)),
    Fault("B3 5 mm beside its scan", lambda p: move(p, np.eye(4) + 5 * np.eye(4, k=3)), 3, ("origin",)),
    Fault("B17 four-dimensional", lambda p: change(p, lambda a: np.stack([a] * 20, -1)), 3, ("split it",)),
    Fault("C2 a half", lambda p: change(p, lambda a: mark(a.astype(np.float32), 0.5)), 3, ("whole numbers",)),
    Fault("E12 a FIFO", fifo, 3, ("not a regular file",)),
    Fault("D1 no label at all", remove, 3, ("no scan has a label",)),
)


LISTED = {"images": ["imagesTr/lab_00_0000.nii.gz"], "label": "labelsTr/lab_00.nii.gz"}
BAD_DESCRIPTIONS = (
    Fault("C5 labels not consecutive", describe(labels={"background": 0, "a": 1, "b": 3}), 3, ("consecutive",)),
    Fault("C10 regions without order", describe(labels={"background": 0, "a": [1, 2], "b": 2}), 3, ("order",)),
    Fault("C11 a small ignore label", describe(labels={"background": 0, "a": 2, "ignore": 1}), 3, ("labels",)),
    Fault("C13 numTraining", describe(numTraining=9), 3, ("numTraining is 9", "set it to 1")),
    Fault("C14 another ending", describe(file_ending=".nrrd"), 3, ("does not end in .nrrd",)),
    Fault("C14 no image's ending", describe(file_ending=".png"), 3, ("must be one of",)),
    Fault("B5 a second channel", describe(channel_names={"0": "MRI", "1": "CT"}), 3, ("the file is missing",)),
    Fault("no channels", describe(channel_names={}), 3, ("channel_names",)),
    Fault("labels of text", describe(labels={"background": 0, "a": "1"}), 3, ("whole number",)),
    Fault("C20 a case that leaves its folder", describe(dataset={"../x": LISTED}), 5, ("would leave its folder",)),
    Fault("C20 a case with a newline", describe(dataset={"a\nb": LISTED}), 5, ("would leave its folder",)),
    Fault("a list", lambda p: p.write_text("[]"), 3, ("JSON object",)),
    Fault("half a file", lambda p: p.write_text(p.read_text()[:40]), 3, ("not valid JSON",)),
    Fault("no file", remove, 3, ("every data set needs one",)),
    Fault("E12 a FIFO", fifo, 3, ("not a regular file",)),
    Fault("half a surrogate", describe(channel_names={"0": "\ud800"}), 3, ("surrogates not allowed",)),
    Fault("numTraining true", describe(numTraining=True), 3, ("numTraining is missing or of the wrong kind",)),
    Fault("one value twice", describe(labels={"background": 0, "a": 1, "b": 1}), 3, ("the same values",)),
    Fault("a structure of 0", describe(labels={"background": 0, "a": [0, 1]}), 3, ("only the background is 0",)),
    Fault("C19 one number twice", lambda p: (p.parents[1] / "Dataset001_Other").mkdir(), 3, ("share one number",)),
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
        *(pytest.param("dataset.json", fault, id=f"description {fault.case}") for fault in BAD_DESCRIPTIONS),
    ],
)
def test_a_bad_data_set_is_refused_before_anything_is_written(make_project, place, fault):
    project = make_project(n_labelled=1, n_unlabelled=1)
    fault.spoil(project.dataset / place)
    answer = project.plan()
    assert_told(answer, fault)
    assert not list(project.prepared.rglob("plan.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, ("schema",)),
        ({"rounds": -1}, ("must not be negative",)),
        ({"unknown": 1}, ("unknown",)),
        ({"network": None}, ("network",)),
        ({"atlases": []}, ("one case that scans are registered to",)),
    ],
    ids=["C22 of a newer version", "a negative number", "an entry too many", "an entry of another kind", "no atlas"],
)
def test_a_plan_that_cannot_be_is_refused_by_training(make_project, change, words):
    project = make_project(n_labelled=1, n_unlabelled=1)
    assert project.plan("--no_pp").code == 0
    project.edit_plans(lambda plan: plan.update(change))
    answer = project.train("0")
    assert_told(answer, Fault("", remove, 3, ("plan.json", *words)))
    assert answer.err.splitlines()[-1].startswith("rrlsam_train: ")
    assert not project.model.exists()


def test_of_a_thousand_bad_scans_ten_are_told_and_all_are_listed(trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1000):
        (folder / f"c{number:03d}_0000.nii.gz").write_bytes(b"\x1f\x8b")
    answer = trained.predict(folder, tmp_path / "out", "-f", "0")
    assert answer.code == 6
    assert len(answer.err.splitlines()) < 20
    scans = json.loads((tmp_path / "out" / "report.json").read_text())["scans"]
    assert sum(scan["failure"] is not None for scan in scans) == 1000


def test_a_name_that_is_no_utf_8_fails_alone(trained, tmp_path):
    """SimpleITK would end the process at it."""
    shutil.copytree(trained.dataset / "imagesTs", tmp_path / "in")
    os.rename(tmp_path / "in" / "test_00_0000.nii.gz", os.fsencode(tmp_path / "in") + b"/\xff_0000.nii.gz")
    answer = trained.predict(tmp_path / "in", tmp_path / "out", "-f", "0", "--disable_tta", "--refine", "0")
    assert_told(answer, Fault("", remove, 6, ("\\udcff_0000.nii.gz: the name is not UTF-8; rename it",)))
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["test_01.nii.gz"]


def test_a_mistake_of_ours_costs_one_scan(trained, tmp_path, monkeypatch):
    def stumble(scan: Any, *given: Any) -> Any:
        if scan.case == "test_00":
            raise TypeError("wrong number of arguments\nand a long explanation")
        return predict_scan(scan, *given)

    predict_scan = predict.predict_scan
    monkeypatch.setattr(predict, "predict_scan", stumble)
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "0", "--disable_tta", "--refine", "0")
    assert_told(answer, Fault("", remove, 6, ("test_00: internal error, TypeError: wrong number of arguments; run",)))
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == ["test_01.nii.gz"]
