"""Which scans a folder or a file stands for."""

from pathlib import Path

import pytest

from rrlsam.errors import BadInputError, UsageError
from rrlsam.scans.inputs import count_channels, find_inputs


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def found(source: Path, channels: int = 1) -> dict[str, list[str]]:
    return {scan.case: [path.name for path in scan.images] for scan in find_inputs(source, channels)}


def test_a_folder_gives_its_cases_with_all_channels(tmp_path):
    touch(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_x_0000.nii.gz", "a_x_0001.nii.gz", ".DS_Store", "notes.txt")
    assert found(tmp_path, 2) == {
        "a_x": ["a_x_0000.nii.gz", "a_x_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_a_channel_too_many_is_not_passed_over(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    assert found(tmp_path, 1) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz"]}


def test_cases_may_have_different_endings(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b_0000.mha", "c_0000.nii")
    assert [scan.ending for scan in find_inputs(tmp_path, 1)] == [".nii.gz", ".mha", ".nii"]


def test_a_single_file_need_not_have_a_channel_number(tmp_path):
    touch(tmp_path, "scan.nii.gz", "other_0000.nii.gz")
    assert found(tmp_path / "scan.nii.gz") == {"scan": ["scan.nii.gz"]}
    assert found(tmp_path / "other_0000.nii.gz") == {"other": ["other_0000.nii.gz"]}


def test_a_single_file_brings_its_other_channels(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    assert found(tmp_path / "a_0001.nii.gz", 2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_the_name_of_one_scan_may_begin_with_that_of_another(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "a_b_0000.nii.gz", "a_b_0001.nii.gz")
    assert found(tmp_path / "a_0000.nii.gz", 2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_a_single_file_names_the_channel_that_lacks_beside_it(tmp_path):
    (tmp_path / "a_0000.nii.gz").touch()
    (scan,) = find_inputs(tmp_path / "a_0000.nii.gz", 2)
    assert scan.images == (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")


def test_files_without_a_channel_number_are_named(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b.nii.gz")
    with pytest.raises(BadInputError, match=r"1 file\(s\) lack a channel number \(b\.nii\.gz\); rename X to X_0000"):
        find_inputs(tmp_path, 1)


def test_numbers_of_scans_that_look_like_channels_are_told(tmp_path):
    touch(tmp_path, "OASIS_0001.nii.gz", "OASIS_0002.nii.gz")
    with pytest.raises(BadInputError, match=r"OASIS_0002\.nii\.gz are the scan's own, rename X to X_0000"):
        find_inputs(tmp_path, 1)


def test_a_scan_without_its_first_channel_stops_no_other(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz")
    assert set(found(tmp_path, 2)) == {"a", "b"}


def test_two_files_of_one_name_are_two_scans_where_both_are_named(tmp_path):
    touch(tmp_path, "NLST_0001_0000.nii.gz", "NLST_0001_0001.nii.gz", "NLST_0002_0000.nii.gz")
    moving = tmp_path / "NLST_0001_0001.nii.gz"
    assert count_channels(moving) == 2
    assert count_channels(moving, moving) == 2
    assert count_channels(moving, tmp_path / "NLST_0002_0000.nii.gz") == 2
    assert count_channels(moving, tmp_path / "NLST_0001_0000.nii.gz") == 1


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no scans found"):
        find_inputs(tmp_path, 1)


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        find_inputs(tmp_path / "nowhere", 1)


def test_one_case_in_two_formats_is_refused(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0000.mha")
    with pytest.raises(BadInputError, match="a exist with several endings"):
        find_inputs(tmp_path, 1)


def test_an_unknown_ending_is_refused(tmp_path):
    touch(tmp_path, "a.dcm")
    with pytest.raises(BadInputError, match="unknown file ending"):
        find_inputs(tmp_path / "a.dcm", 1)
