"""OASIS of Neurite's and FreeSurfer's subjects become data sets that the other commands take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.nifti1 import Nifti1Image

from rrlsam.cli import convert_dataset
from rrlsam.convert import label_names
from rrlsam.errors import BadInputError
from rrlsam.scans.dataset import load_dataset
from rrlsam.scans.integrity import check_dataset
from rrlsam.scans.mgh import read_mgh
from rrlsam.scans.volume import read_image, read_labels

SHAPE = (4, 6, 8)
NEURITE = (1, 2, 3, 4, 7, 13, 14, 19, 20, 21, 22, 26, 30, 35)
"""A few numbers of seg35: all of the paper's structures, and 4 (inferior ventricle) and 35 (right choroid plexus)."""
IN_ORDER = (1, 2, 3, 20, 7, 21, 22, 13, 14, 26, 30, 19)
"""Those of the paper's structures that seg35 has, in the paper's order."""


def label_map(numbers) -> np.ndarray:
    """Each number in five voxels."""
    array = np.zeros(SHAPE, np.uint8)
    array.ravel()[: 5 * len(numbers)] = np.repeat(np.array(numbers, np.uint8), 5)
    return array


@pytest.fixture
def neurite(tmp_path, phantoms) -> Path:
    """Two subjects with labels and one without."""
    folder = tmp_path / "neurite"
    for number in (1, 2, 3):
        subject = folder / f"OASIS_OAS1_000{number}_MR1"
        scan = np.random.default_rng(number).random(SHAPE, np.float32)
        where = {"spacing": (1.0, 1.5, 2.0), "origin": (5.0, -3.0, 2.0), "direction": np.diag([-1, -1, 1])}
        phantoms.write_volume(scan, subject / "aligned_norm.nii.gz", **where)
        if number < 3:
            phantoms.write_volume(label_map(NEURITE), subject / "aligned_seg35.nii.gz", **where)
            phantoms.write_volume(label_map((1, 2, 3, 4)), subject / "aligned_seg4.nii.gz", **where)
    (folder / "logs").mkdir()
    return folder


@pytest.fixture
def convert(tmp_path):
    """Run the command; the exit code."""

    def run(source: Path, *arguments: str, number: int = 35) -> int:
        fixed = ["oasis", "-i", str(source), "-d", str(number), "--name", "OASIS", "--raw", str(tmp_path / "raw")]
        return convert_dataset.main([*fixed, "--disable_progress_bar", *arguments])

    return run


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "raw" / "Dataset035_OASIS"


def values_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_labels(path))


def test_the_result_is_a_sound_data_set(neurite, convert, target):
    assert convert(neurite) == 0
    dataset = load_dataset(target)
    assert check_dataset(dataset) == []
    assert dataset.labelled == ("OASIS_OAS1_0001_MR1", "OASIS_OAS1_0002_MR1")
    assert [path.name for path in (target / "imagesUn").iterdir()] == ["OASIS_OAS1_0003_MR1_0000.nii.gz"]
    assert dataset.channel_names == ("MRI",)


def test_the_scans_are_the_same_files(neurite, convert, target):
    assert convert(neurite) == 0
    name = "OASIS_OAS1_0003_MR1"
    copy = (target / "imagesUn" / f"{name}_0000.nii.gz").read_bytes()
    assert copy == (neurite / name / "aligned_norm.nii.gz").read_bytes()


def test_neurites_numbers_become_the_papers_structures_by_name(neurite, convert, target, capsys):
    assert convert(neurite) == 0
    labels = json.loads((target / "dataset.json").read_text())["labels"]
    assert list(labels) == ["background", *(name for name in label_names.PAPER if name != "WM-hypointensities")]
    before, after = label_map(NEURITE), values_of(target / "labelsTr" / "OASIS_OAS1_0001_MR1.nii.gz")
    for value, number in enumerate(IN_ORDER, 1):
        assert (after == value).tolist() == (before == number).tolist()
        assert list(labels)[value] == label_names.SEG35[number]
    assert (after > 0).sum() == 5 * len(IN_ORDER)
    assert "2 labelled and 1 unlabelled scans, 12 structures" in capsys.readouterr().out


def test_all_structures_that_occur_are_kept_and_numbered_without_gaps(neurite, convert, target, capsys):
    assert convert(neurite, "--structures", "all") == 0
    labels = json.loads((target / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0} | {label_names.SEG35[n]: i for i, n in enumerate(NEURITE, 1)}
    after = values_of(target / "labelsTr" / "OASIS_OAS1_0002_MR1.nii.gz")
    assert after.max() == len(NEURITE)
    assert (after == 14).tolist() == (label_map(NEURITE) == 35).tolist()
    assert "no label map has Left-Cerebellum-White-Matter" in capsys.readouterr().err


def test_the_tissues_can_be_taken_instead(neurite, convert, target):
    assert convert(neurite, "--structures", "all", "--labels", "aligned_seg4.nii.gz") == 0
    labels = json.loads((target / "dataset.json").read_text())["labels"]
    assert list(labels) == ["background", "Cortex", "Subcortical-Gray-Matter", "White-Matter", "CSF"]


def test_tissues_are_none_of_the_papers_structures(neurite, convert, target, capsys):
    assert convert(neurite, "--labels", "aligned_seg4.nii.gz") == 2
    assert "give --structures all" in capsys.readouterr().err
    assert not target.exists()


def test_the_folders_own_table_of_names_goes_first(neurite, convert, target):
    lines = ["# No. Label Name: R G B A", "", "  0 Unknown 0 0 0 0"]
    lines += [f"{n:3d} {'Left-Hippocampus' if n == 4 else f'Other-{n}'}   220 216 20 0" for n in NEURITE]
    (neurite / "seg35_labels.txt").write_text("\n".join(lines))
    assert convert(neurite) == 0
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "Left-Hippocampus": 1}
    after = values_of(target / "labelsTr" / "OASIS_OAS1_0001_MR1.nii.gz")
    assert (after == 1).tolist() == (label_map(NEURITE) == 4).tolist()


@pytest.mark.parametrize("line", ["1 Left-Hippocampus", "x Left-Hippocampus 1 2 3 0", "1 A 1 2 3 0\n1 B 1 2 3 0"])
def test_a_broken_table_is_refused_with_its_line(neurite, convert, target, capsys, line):
    (neurite / "seg35_labels.txt").write_text(line)
    assert convert(neurite) == 3
    assert f"line {len(line.splitlines())} is not NUMBER NAME R G B A" in capsys.readouterr().err
    assert not target.exists()


def mgh(array: Any, affine: Any, header: Any = None) -> Any:
    """A volume of FreeSurfer's; nibabel's own annotations leave out numpy's arrays."""
    return MGHImage(array, affine, header)


def write_mgz(path: Path, array: np.ndarray, shift: float = 0.0) -> None:
    """FreeSurfer's conformed orientation, LIA."""
    affine = np.array([[-1.0, 0, 0, 10 + shift], [0, 0, 1, -20], [0, -1, 0, 30], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    mgh(np.ascontiguousarray(array.T), affine).to_filename(path)


@pytest.fixture
def freesurfer(tmp_path) -> Path:
    """One subject with labels, FreeSurfer's numbers of the paper's structures and of three others."""
    subject = tmp_path / "subjects" / "bert" / "mri"
    write_mgz(subject / "norm.mgz", np.random.default_rng(0).random(SHAPE, np.float32))
    write_mgz(subject / "aseg.mgz", label_map(sorted({2, 3, 4, 41, 10, 42, 43, 77, 16, 17, 49, 53, 31} | {24, 62, 63})))
    return subject.parents[1]


def test_freesurfers_numbers_become_all_thirteen_structures(freesurfer, convert, target):
    assert convert(freesurfer) == 0
    labels = json.loads((target / "dataset.json").read_text())["labels"]
    assert list(labels)[1:] == list(label_names.PAPER)
    stored = sitk.GetArrayFromImage(read_labels(freesurfer / "bert" / "mri" / "aseg.mgz"))
    after = values_of(target / "labelsTr" / "bert.nii.gz")
    numbers = (2, 3, 4, 41, 10, 42, 43, 77, 16, 17, 49, 53, 31)
    for value, number in enumerate(numbers, 1):
        assert (after == value).tolist() == (stored == number).tolist()
    assert (after > 0).sum() == 5 * 13
    assert check_dataset(load_dataset(target))[0].severity == "warning"


def test_a_freesurfer_volume_keeps_its_place_in_the_world(freesurfer, convert, target):
    assert convert(freesurfer) == 0
    ours: Any = Nifti1Image.from_filename(target / "imagesTr" / "bert_0000.nii.gz")
    theirs: Any = MGHImage.from_filename(freesurfer / "bert" / "mri" / "norm.mgz")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())


@pytest.mark.parametrize("name", ["norm.mgz", "aseg.mgz"])
def test_a_cut_freesurfer_volume_is_refused(freesurfer, convert, target, capsys, name):
    path = freesurfer / "bert" / "mri" / name
    path.write_bytes(path.read_bytes()[:-40])
    assert convert(freesurfer) == 3
    assert f"{name}: corrupt, cut short" in capsys.readouterr().err
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("shape", "what"), [((3, 4, 5, 2), "holds 2 frames"), ((30, 40, 5), "impossible size")])
def test_what_is_no_single_volume_is_refused(tmp_path, shape, what):
    mgh(np.zeros(shape, np.float32), np.eye(4)).to_filename(tmp_path / "a.mgz")
    with pytest.raises(BadInputError, match=what):
        read_mgh(tmp_path / "a.mgz", 1000)


def test_a_sheared_freesurfer_volume_is_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.1
    header = mgh(np.zeros((3, 4, 5), np.float32), np.eye(4)).header
    header["Mdc"] = affine[:3, :3].T
    image = mgh(np.zeros((3, 4, 5), np.float32), None, header)
    image.to_filename(tmp_path / "a.mgz")
    with pytest.raises(BadInputError, match="right angles"):
        read_mgh(tmp_path / "a.mgz", 1000)


def test_nan_in_a_freesurfer_volume_is_refused(tmp_path):
    write_mgz(tmp_path / "a.mgz", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(BadInputError, match="NaN"):
        read_image(tmp_path / "a.mgz")


def spoil_grid(subject: Path, phantoms) -> str:
    phantoms.write_volume(label_map(NEURITE), subject / "aligned_seg35.nii.gz")
    return "its grid differs from that of aligned_norm.nii.gz: spacing"


def spoil_number(subject: Path, phantoms) -> str:
    path = subject / "aligned_seg35.nii.gz"
    image = sitk.ReadImage(str(path))
    image[0, 0, 0] = 99
    sitk.WriteImage(image, str(path))
    return "holds numbers that no structure is known for: 99 (1 voxels)"


def spoil_scan(subject: Path, phantoms) -> str:
    path = subject / "aligned_norm.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    return "aligned_norm.nii.gz: corrupt"


def spoil_pair(subject: Path, phantoms) -> str:
    (subject / "aligned_norm.nii.gz").unlink()
    return "has aligned_seg35.nii.gz, but no aligned_norm.nii.gz"


@pytest.mark.parametrize("spoil", [spoil_grid, spoil_number, spoil_scan, spoil_pair])
def test_a_bad_subject_is_left_out_and_named(neurite, convert, target, phantoms, capsys, spoil):
    message = spoil(neurite / "OASIS_OAS1_0002_MR1", phantoms)
    assert convert(neurite) == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 3 scans were left out: " in last
    assert message in last
    dataset = load_dataset(target)
    assert check_dataset(dataset) == []
    assert [scan.case for scan in dataset.scans] == ["OASIS_OAS1_0001_MR1", "OASIS_OAS1_0003_MR1"]
    assert list(json.loads((target / "conversion.json").read_text())["failures"]) == ["OASIS_OAS1_0002_MR1"]


def test_nothing_is_written_if_no_labelled_subject_is_good(neurite, convert, target, phantoms, capsys):
    for number in (1, 2):
        spoil_number(neurite / f"OASIS_OAS1_000{number}_MR1", phantoms)
    assert convert(neurite) == 3
    assert "nothing was written" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []


def test_an_existing_data_set_is_kept(neurite, convert, target, capsys):
    assert convert(neurite) == 0
    (target / "mine.txt").write_text("mine")
    assert convert(neurite) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert (target / "mine.txt").exists()


def test_an_existing_data_set_is_replaced_on_request(neurite, convert, target):
    assert convert(neurite) == 0
    (target / "mine.txt").write_text("mine")
    assert convert(neurite, "--overwrite", "--structures", "all") == 0
    assert not (target / "mine.txt").exists()
    assert len(load_dataset(target).labels.structures) == len(NEURITE)
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_replacement_keeps_the_earlier_data_set(neurite, convert, target, phantoms):
    assert convert(neurite) == 0
    for number in (1, 2):
        spoil_number(neurite / f"OASIS_OAS1_000{number}_MR1", phantoms)
    assert convert(neurite, "--overwrite") == 3
    assert len(load_dataset(target).scans) == 3


def test_a_data_set_that_was_not_converted_is_never_replaced(neurite, convert, target, capsys):
    target.mkdir(parents=True)
    (target / "dataset.json").write_text("{}")
    assert convert(neurite, "--overwrite") == 2
    assert "was not converted and is not replaced" in capsys.readouterr().err
    assert (target / "dataset.json").read_text() == "{}"


def test_a_conversion_never_replaces_what_it_reads(neurite, convert, target, capsys):
    assert convert(neurite) == 0
    inside = target / "source"
    neurite.rename(inside)
    assert convert(inside, "--overwrite") == 2
    assert "holds what is to be converted" in capsys.readouterr().err
    assert (inside / "OASIS_OAS1_0001_MR1").is_dir()


def test_a_number_that_is_taken_is_refused(neurite, convert, target, capsys):
    (target.parent / "Dataset035_Other").mkdir(parents=True)
    assert convert(neurite) == 2
    assert "has the number 35 already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--name", "../x"], ["-d", "1000"], ["--labels", "manual.nii.gz"]])
def test_names_that_cannot_be_taken_are_refused(neurite, convert, target, arguments):
    assert convert(neurite, *arguments) == 2
    assert not target.exists()


def test_a_folder_without_subjects_is_refused(tmp_path, convert, capsys):
    (tmp_path / "empty" / "bert").mkdir(parents=True)
    assert convert(tmp_path / "empty") == 3
    assert "no subject has a scan called aligned_norm.nii.gz" in capsys.readouterr().err
    assert convert(tmp_path / "nowhere") == 2
    assert convert(tmp_path / "empty" / "bert") == 3
    assert "has no subfolder" in capsys.readouterr().err


def test_both_numberings_name_sides_alike():
    for names in (label_names.SEG35, label_names.ASEG):
        left = {name.removeprefix("Left-") for name in names.values() if name.startswith("Left-")}
        assert left == {name.removeprefix("Right-") for name in names.values() if name.startswith("Right-")}
    assert len(label_names.SEG35) == 35
    assert len(label_names.paper_structures(label_names.ASEG)) == 13


def test_names_of_older_versions_are_understood():
    names = {10: "Left-Thalamus-Proper*", 9: "Left-Thalamus", 31: "Left-choroid-plexus"}
    assert label_names.paper_structures(names) == {"Left-Thalamus": (9, 10), "Left-Choroid-Plexus": (31,)}
