"""No result takes the place of a scan, of a label, or of anything unasked."""

from pathlib import Path

import pytest

from rrlsam.cli import apply_transform, distill, evaluate, export_model, jacobian, predict, register, suggest_atlas
from rrlsam.errors import UsageError
from rrlsam.registration.register_scans import require_safe_registration
from rrlsam.system.safe_output import require_safe_file, require_safe_folder


@pytest.fixture
def raw(make_dataset, tmp_path) -> Path:
    return make_dataset(tmp_path / "Dataset001_Tiny", 1, 1)


def assert_refused(answer, folder: Path, before: dict[str, str], projects, *words: str) -> None:
    assert answer.code == 2, answer
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err
    assert projects.hashes(folder) == before


COMMANDS = {
    "a transform over its image": (apply_transform, "-i {free} -t t.json -o {free}", "would replace what is read"),
    "a transform over its grid": (apply_transform, "-i x.csv -t t.json -r {free} -o {free}", "would replace"),
    "a transform over anything": (apply_transform, "-i x.nii.gz -t t.json -o {free}", "give --overwrite"),
    "a transform into imagesTr": (apply_transform, "-i x.nii.gz -t t.json -o {raw}/imagesTr/n.nii.gz", "raw data set"),
    "a transform to no image": (apply_transform, "-i x.nii.gz -t t.json -o {mine}/new.png", "must end in one of"),
    "a map to no image": (jacobian, "x.nii.gz -o {mine}/map.png", "must end in one of"),
    "a map over its field": (jacobian, "{free} -o {free}", "would replace what is read"),
    "numbers over a field": (jacobian, "{free} --json {free} --overwrite", "would replace what is read"),
    "a map over anything": (jacobian, "x.nii.gz -o {free}", "give --overwrite"),
    "a summary among labels": (evaluate, "{raw}/labelsTr {raw}/labelsTr -l 1 2", "belongs to a raw data set"),
    "a summary over a scan": (evaluate, "{raw}/labelsTr {mine} -l 1 2 -o {free}", "must end in .json"),
    "a table over a scan": (evaluate, "{raw}/labelsTr {mine} -l 1 2 --csv {free}", "must end in .csv"),
    "a summary over dataset.json": (evaluate, "{raw}/labelsTr a -l 1 -o {mine}/dataset.json", "not be dataset.json"),
    "registrations among images": (register, "-i {raw}/imagesTr -moving {free} -o {raw}/imagesTr", "raw data set"),
    "an encoder among images": (distill, "-i {mine} -o {raw}/imagesTr/e.pt --sam none", "belongs to a raw data set"),
    "a model among images": (export_model, "-o {raw}/imagesTr/m.zip", "belongs to a raw data set"),
    "masks among scans": (predict, "-i {mine} -o {mine}", "is the folder of the scans"),
    "registrations among scans": (register, "-i {mine} -moving {raw}/x -o {mine}/.", "is the folder of the scans"),
    "a suggestion among images": (suggest_atlas, "-i {raw}/imagesUn -o {raw}/imagesUn", "belongs to a raw data set"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_nothing_that_is_there_is_replaced(raw, projects, tmp_path, what):
    command, arguments, words = COMMANDS[what]
    free = tmp_path / "mine" / "scan.nii.gz"
    free.parent.mkdir()
    free.write_bytes((raw / "imagesUn" / "un_00_0000.nii.gz").read_bytes())
    before = projects.hashes(tmp_path)
    given = [text.format(raw=raw, free=free, mine=free.parent) for text in arguments.split()]
    assert_refused(projects.run(command.main, given), tmp_path, before, projects, words)


def test_a_link_to_a_raw_folder_is_that_folder(raw, tmp_path):
    (tmp_path / "out").symlink_to(raw / "imagesTr")
    with pytest.raises(UsageError, match="belongs to a raw data set"):
        require_safe_folder(tmp_path / "out")


def test_a_result_may_replace_an_older_one_if_that_is_asked_for(tmp_path):
    old = tmp_path / "old.nii.gz"
    old.touch()
    require_safe_file(old, (tmp_path / "in.nii.gz", None), overwrite=True)
    with pytest.raises(UsageError, match="exists already; give --overwrite"):
        require_safe_file(old, (), overwrite=False)


def test_a_link_to_an_input_is_the_input(tmp_path):
    (tmp_path / "in.nii.gz").touch()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "in.nii.gz")
    with pytest.raises(UsageError, match="would replace what is read"):
        require_safe_file(tmp_path / "link.nii.gz", (tmp_path / "in.nii.gz",), overwrite=True)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a_0000.nii.gz", True),
        ("b_Warped.nii.gz", True),
        ("a_Warped.nii.gz", False),
        ("a_InverseWarped_0001.nii.gz", False),
        ("a_WarpedLabels.nii.gz", False),
        ("a_1InverseWarp.nii.gz", False),
    ],
)
def test_a_registration_replaces_nothing_that_is_registered(tmp_path, name, safe):
    if safe:
        require_safe_registration(tmp_path, ["a"], [tmp_path / name, None])
        return
    require_safe_registration(tmp_path / "other", ["a"], [tmp_path / name])
    with pytest.raises(UsageError, match=f"{name} would be replaced"):
        require_safe_registration(tmp_path, ["a"], [tmp_path / name])
