"""Files and folders are written whole or not at all, and what refuses them is told."""

from pathlib import Path

import pytest

from rrlsam.errors import ResourceError
from rrlsam.system.files import atomic_write
from rrlsam.system.staging import staged_folder

WRITERS = pytest.mark.parametrize("writer", [atomic_write, staged_folder], ids=["file", "folder"])


@WRITERS
def test_a_full_disk_is_told_by_the_name_of_what_was_to_be_written(tmp_path, writer):
    told = pytest.raises(ResourceError, match=r"out\.txt: cannot be written \(No space left on device\)")
    with told, writer(tmp_path / "out.txt") as temporary:
        raise OSError(28, "No space left on device", str(temporary))
    assert list(tmp_path.iterdir()) == []


@WRITERS
def test_a_full_disk_within_what_is_written_is_told_as_well(tmp_path, writer):
    told = pytest.raises(ResourceError, match=r"out\.txt: cannot be written")
    with told, writer(tmp_path / "out.txt") as temporary:
        raise OSError(28, "No space left on device", str(temporary / "part"))


@WRITERS
def test_trouble_with_a_file_that_is_read_stays_what_it_is(tmp_path, writer):
    """Even if it lies in the same folder."""
    with pytest.raises(FileNotFoundError), writer(tmp_path / "out.txt"):
        (tmp_path / "in.txt").read_text()
    assert list(tmp_path.iterdir()) == []


@WRITERS
def test_a_full_disk_is_told_where_copying_blames_the_source(tmp_path, writer):
    told = pytest.raises(ResourceError, match=r"out\.txt: cannot be written")
    with told, writer(tmp_path / "out.txt") as temporary:
        raise OSError(28, "No space left on device", "/elsewhere/in.txt", None, str(temporary))


@WRITERS
def test_a_relative_path_is_known_again(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResourceError, match="cannot be written"), writer(Path("out.txt")) as temporary:
        raise OSError(28, "No space left on device", str(temporary.absolute()))


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.nii.nii.gz", ".nii.gz"), ("a.b.c.json", ".json"), ("plain", ""), ("scan.v1.nii.gz", ".nii.gz")],
)
def test_a_file_has_one_ending_while_it_is_written(tmp_path, name, ending):
    """ITK would take the first of two endings off and write elsewhere."""
    with atomic_write(tmp_path / name) as temporary:
        assert "".join(temporary.suffixes) == ending
        temporary.write_text("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "whole")]
