"""Results appear together or not at all; what lay in their places is kept unless it was ours."""

from pathlib import Path

import pytest

from rrlsam.errors import ResourceError
from rrlsam.system.own_results import HIDDEN, REPLACED, own_results


def write(folder: Path, text: str, *names: str) -> None:
    with own_results(folder, "a") as new:
        for name in names or ("a.nii.gz", "registration/a.nii.gz"):
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(text)


def there(folder: Path) -> dict[str, str]:
    """All files but the marks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sha256"]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_results_of_ours_are_replaced(tmp_path, caplog):
    write(tmp_path, "first")
    write(tmp_path, "second", "a.nii.gz")
    write(tmp_path, "third")
    assert there(tmp_path) == {"a.nii.gz": "third", "registration/a.nii.gz": "third"}
    assert caplog.text == ""


def test_what_is_not_ours_or_was_changed_is_kept_and_told(tmp_path, caplog):
    (tmp_path / "a.nii.gz").write_text("by hand")
    for number in range(3):
        write(tmp_path, f"ours {number}")
        (tmp_path / "registration" / "a.nii.gz").write_text(f"changed {number}")
    assert there(tmp_path) == {
        "a.nii.gz": "ours 2",
        "registration/a.nii.gz": "changed 2",
        f"{REPLACED}/a.nii.gz": "by hand",
        f"{REPLACED}/registration/a.nii.gz": "changed 0",
        f"{REPLACED}/registration/a_2.nii.gz": "changed 1",
    }
    assert len(caplog.messages) == 3


def test_a_failure_leaves_all_as_it_was(tmp_path):
    write(tmp_path, "first")
    before = there(tmp_path)
    with pytest.raises(ResourceError, match="cannot be written"):
        write(tmp_path, "second", "a.nii.gz", "a.nii.gz/b")
    assert there(tmp_path) == before


def test_what_a_killed_writer_left_is_no_result(tmp_path):
    left = tmp_path / HIDDEN / "new-a"
    left.mkdir(parents=True)
    (left / "half.nii.gz").write_text("half")
    write(tmp_path, "whole", "a.nii.gz")
    assert there(tmp_path) == {"a.nii.gz": "whole"}


def test_a_folder_that_refuses_is_told(tmp_path):
    (tmp_path / HIDDEN).write_text("a file in the place of the folder")
    with pytest.raises(ResourceError, match="cannot be written"):
        write(tmp_path, "first")
