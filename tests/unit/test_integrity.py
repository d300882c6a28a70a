import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.scans import sound
from rrlsam.scans.dataset import Dataset, load_dataset
from rrlsam.scans.integrity import check_dataset, require_sound
from rrlsam.scans.scan_checks import Finding, check_images
from rrlsam.scans.sound import SoundScans


def _problems(folder: Path, severity: str = "error") -> dict[str, str]:
    """Problem and fix by file name."""
    found = check_dataset(load_dataset(folder))
    return {Path(f.file).name: f"{f.problem}; {f.fix}" for f in found if f.severity == severity}


def test_a_sound_data_set_has_no_findings(tiny, tmp_path):
    assert check_dataset(tiny) == []
    require_sound([], tmp_path / "report.json")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Cases whose images are read."""
    cases = []
    monkeypatch.setattr(sound, "check_images", lambda scan: cases.append(scan.case) or check_images(scan))
    return cases


def check_remembering(dataset: Dataset, path: Path, *, forget: bool = False) -> list[Finding]:
    scans = SoundScans(path, forget=forget)
    found = check_dataset(dataset, look=scans.check_images, workers=1)
    scans.save()
    return found


def test_only_scans_that_changed_are_read_again(tiny, tmp_path, read):
    path = tmp_path / "sound.json"
    assert check_remembering(tiny, path) == check_remembering(tiny, path) == []
    assert read == [scan.case for scan in tiny.scans]
    del read[:]
    (image,) = tiny.scan("lab_02").images
    whole = image.read_bytes()
    image.write_bytes(whole[:500])
    for _ in range(2):  # what is wrong is told each time
        assert [finding.file for finding in check_remembering(tiny, path)] == [str(image)]
    image.write_bytes(whole)
    assert check_remembering(tiny, path) == []
    assert read == ["lab_02"] * 2


def test_what_was_known_before_a_stop_stays_known(tiny, tmp_path, read):
    path = tmp_path / "sound.json"
    check_remembering(tiny, path)
    (image,) = tiny.scan("lab_00").images
    image.write_bytes(tiny.scan("lab_01").images[0].read_bytes())
    stopped = SoundScans(path)
    stopped.check_images(tiny.scan("lab_00"))
    stopped.save()
    check_remembering(tiny, path)
    assert len(read) == len(tiny.scans) + 1


def test_labels_are_read_each_time(tiny, tmp_path, phantoms):
    path = tmp_path / "sound.json"
    assert check_remembering(tiny, path) == []
    one, two = (tiny.scan(case).label for case in ("lab_01", "lab_02"))
    phantoms.write_volume(phantoms.phantom(1)[1] + 7, one)
    phantoms.write_volume(phantoms.phantom(1)[1], two, (2.0, 2.0, 2.0))
    found = check_remembering(tiny, path)
    assert [(Path(finding.file), finding.problem.split(":")[0]) for finding in found] == [
        (one, "label values not declared in dataset.json"),
        (two, "its grid differs from that of lab_02_0000.nii.gz"),
    ]


def test_all_is_read_if_that_is_wanted_or_the_memory_is_damaged(tiny, tmp_path, read):
    path, every = tmp_path / "sound.json", [scan.case for scan in tiny.scans]
    check_remembering(tiny, path)
    check_remembering(tiny, path, forget=True)
    path.write_text(path.read_text().replace('"content": "', '"content": "0', 1))
    check_remembering(tiny, path)
    assert read == every * 3


@pytest.mark.parametrize("options", [{"regions": True}, {"ignore": True}, {"channels": 2}, {"ending": ".nrrd"}])
def test_other_sound_data_sets_have_no_findings(tmp_path, make_dataset, options):
    assert check_dataset(load_dataset(make_dataset(tmp_path / "Dataset003_Other", 1, 1, **options))) == []


def test_everything_is_found_at_once(tiny, phantoms, edit_json):
    images, labels = tiny.folder / "imagesTr", tiny.folder / "labelsTr"
    (images / "lab_00_0000.nii.gz").write_bytes((images / "lab_00_0000.nii.gz").read_bytes()[:2000])
    (images / "loose.nii.gz").write_bytes(b"x")
    label = phantoms.phantom(1)[1]
    label[0, 0, :3] = 7
    phantoms.write_volume(label, labels / "lab_01.nii.gz")
    phantoms.write_volume(label, labels / "orphan.nii.gz")
    edit_json(tiny.folder / "dataset.json", numTraining=99)
    found = _problems(tiny.folder)
    assert "cut short" in found["lab_00_0000.nii.gz"]
    assert "rename it to loose_0000.nii.gz" in found["loose.nii.gz"]
    assert "7 (3 voxels)" in found["lab_01.nii.gz"]
    assert "a label without a scan" in found["orphan.nii.gz"]
    assert "numTraining is 99, but 5 training cases" in found["dataset.json"]
    assert len(found) == 5


def test_a_missing_channel_is_named(tmp_path, make_dataset):
    folder = make_dataset(tmp_path / "Dataset003_Two", 1, 1, channels=2)
    (folder / "imagesTr" / "lab_00_0001.nii.gz").unlink()
    assert "the file is missing" in _problems(folder)["lab_00_0001.nii.gz"]


def test_files_of_another_ending_and_channels_too_many_are_strays(tiny):
    (tiny.folder / "imagesTr" / "more_0000.nrrd").write_bytes(b"x")
    (tiny.folder / "imagesTr" / "lab_00_0001.nii.gz").write_bytes(b"x")
    found = _problems(tiny.folder)
    assert "does not end in .nii.gz" in found["more_0000.nrrd"]
    assert "channel 0001 is not among the 1" in found["lab_00_0001.nii.gz"]
    fixes = [finding.fix for finding in check_dataset(load_dataset(tiny.folder)) if "among the 1" in finding.problem]
    assert fixes == ["declare it, remove it, or if the number is the scan's own, rename it to lab_00_0001_0000.nii.gz"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"spacing": (1.0, 1.1, 1.0)}, r"spacing (1, 1.1, 1) instead of (1, 1, 1)"),
        ({"origin": (0.0, 0.0, 5.0)}, "origin (0, 0, 5) instead of (0, 0, 0)"),
        ({"direction": np.diag([-1, -1, 1])}, "direction (-1, "),
    ],
)
def test_a_label_on_another_grid_is_refused(tiny, phantoms, changes, named):
    phantoms.write_volume(phantoms.phantom(0)[1], tiny.scans[0].label, **changes)
    assert named in _problems(tiny.folder)["lab_00.nii.gz"]


def test_a_label_of_another_size_is_refused(tiny, phantoms):
    phantoms.write_volume(phantoms.phantom(0)[1][1:], tiny.scans[0].label)
    assert "size (22, 24, 19) instead of (22, 24, 20)" in _problems(tiny.folder)["lab_00.nii.gz"]


def test_channels_on_different_grids_are_refused(tmp_path, make_dataset, phantoms):
    folder = make_dataset(tmp_path / "Dataset003_Two", 1, 1, channels=2)
    phantoms.write_volume(phantoms.phantom(0)[0][0], folder / "imagesTr" / "lab_00_0001.nii.gz", origin=(9.0, 0.0, 0.0))
    assert "resample all channels" in _problems(folder)["lab_00_0001.nii.gz"]


def test_two_dimensional_scans_are_refused(tiny):
    sitk.WriteImage(sitk.Image((8, 8, 1), sitk.sitkFloat32), str(tiny.scans[0].images[0]))
    assert "only 3-D volumes" in _problems(tiny.folder)["lab_00_0000.nii.gz"]


def test_negative_labels_are_refused(tiny, phantoms):
    label = phantoms.phantom(0)[1].astype(np.int16)
    label[0, 0, 0] = -1
    phantoms.write_volume(label, tiny.scans[0].label)
    assert "-1 (1 voxels)" in _problems(tiny.folder)["lab_00.nii.gz"]


def test_a_data_set_without_any_label_is_refused(tmp_path, make_dataset):
    folder = make_dataset(tmp_path / "Dataset003_None", 0, 3)
    assert "no scan has a label" in _problems(folder)["Dataset003_None"]


def test_one_name_in_two_folders_is_refused(tiny):
    shutil.copy(tiny.scans[0].images[0], tiny.folder / "imagesUn" / "lab_00_0000.nii.gz")
    assert "another scan is called lab_00" in _problems(tiny.folder)["lab_00_0000.nii.gz"]


def test_a_listing_with_too_few_channels_is_refused(tiny, edit_json):
    listed = {"a": {"images": ["imagesTr/lab_00_0000.nii.gz"]}}
    edit_json(tiny.folder / "dataset.json", dataset=listed, channel_names={"0": "T1", "1": "T2"}, numTraining=1)
    assert "a: 1 image file(s), but channel_names has 2" in _problems(tiny.folder)["dataset.json"]


def test_odd_but_usable_data_is_warned_of(tiny, phantoms):
    un = tiny.folder / "imagesUn"
    shutil.copy(tiny.scans[0].images[0], un / "un_00_0000.nii.gz")
    phantoms.write_volume(phantoms.phantom(9)[0][0], tiny.scans[1].images[0], spacing=(0.001, 0.001, 0.001))
    phantoms.write_volume(phantoms.phantom(1)[1], tiny.scans[1].label, spacing=(0.001, 0.001, 0.001))
    phantoms.write_volume(np.full(phantoms.SIZE, 5.0, dtype=np.float32), un / "un_01_0000.nii.gz")
    found = _problems(tiny.folder, "warning")
    assert "the same content as lab_00_0000.nii.gz" in found["un_00_0000.nii.gz"]
    assert "implausible spacing" in found["lab_01_0000.nii.gz"]
    assert "every voxel is 5" in found["un_01_0000.nii.gz"]
    assert not _problems(tiny.folder)


def test_a_scan_that_cannot_be_read_is_an_error_and_no_duplicate(tiny, monkeypatch):
    path = tiny.folder / "imagesUn" / "un_00_0000.nii.gz"
    shutil.copy(tiny.scans[0].images[0], path)
    opened = Path.open

    def refuse(file: Path, *given: Any, **named: Any) -> Any:
        if file == path:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    (found,) = check_dataset(tiny, workers=1)
    assert (found.severity, Path(found.file)) == ("error", path)
    assert "cannot be read (Permission denied)" in found.problem


@pytest.mark.parametrize(("moved", "used"), [("qform", "sform"), ("sform", "sform")])
def test_a_header_that_names_two_places_is_warned_of(tiny, moved, used):
    path = tiny.folder / "imagesUn" / "un_00_0000.nii.gz"
    image: Any = nibabel.load(path)
    affine = image.affine.copy()
    (image.set_qform if moved == "qform" else image.set_sform)(affine + np.eye(4, k=3) * 5, code=1)
    (image.set_sform if moved == "qform" else image.set_qform)(affine, code=1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    found = _problems(tiny.folder, "warning")
    assert f"its qform and sform place it differently; the {used} is used" in found[path.name]
    assert not _problems(tiny.folder)


def test_an_atlas_all_alone_is_warned_of(tmp_path, make_dataset):
    folder = make_dataset(tmp_path / "Dataset003_Alone", 1, 0)
    assert "no scan besides the atlas" in _problems(folder, "warning")["Dataset003_Alone"]


def test_ten_errors_are_told_and_the_others_counted(tmp_path):
    report = tmp_path / "report.json"
    errors = [Finding(severity="error", file=f"f{i:02d}", problem="bad", fix="mend it") for i in range(13)]
    with pytest.raises(BadInputError, match=r"(?s)13 errors.*f09: bad; mend it\n  and 3 more"):
        require_sound(errors, report)
    require_sound([Finding(severity="warning", file="f", problem="odd", fix="look")], report)


def test_listed_cases_without_any_image_are_named(tiny, edit_json):
    listed = {case: {"images": [], "label": f"labelsTr/{case}.nii.gz"} for case in ("lab_00", "lab_01")}
    edit_json(tiny.folder / "dataset.json", dataset=listed)
    problems = {finding.problem for finding in check_dataset(load_dataset(tiny.folder))}
    assert {f"dataset: {case}: 0 image file(s), but channel_names has 1" for case in listed} <= problems
