"""CT scans with lung masks become data sets; sides are told by the world, however the voxels are stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli import convert_dataset
from rrlsam.convert.lung_sides import split_lungs
from rrlsam.errors import BadInputError
from rrlsam.scans.dataset import load_dataset
from rrlsam.scans.integrity import check_dataset
from rrlsam.scans.volume import read_labels, to_canonical

SHAPE = (10, 16, 30)
SPACING = (2.0, 2.0, 5.0)
TILT = np.deg2rad(20)
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "left_handed": np.diag([-1.0, 1.0, 1.0]),
    "turned": np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "oblique": np.array([[np.cos(TILT), -np.sin(TILT), 0], [np.sin(TILT), np.cos(TILT), 0], [0, 0, 1.0]]),
}


def lungs(bridge: bool = False) -> sitk.Image:
    """LPS image of the right lung, 2, at small x and a smaller left one, 1, at large x; they may touch in front."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    right = ((x - 8) / 6) ** 2 + ((y - 8) / 6) ** 2 + ((z - 4.5) / 4) ** 2 <= 1
    left = ((x - 22) / 5) ** 2 + ((y - 8) / 6) ** 2 + ((z - 4.5) / 3.5) ** 2 <= 1
    array = np.where(left, 1, np.where(right, 2, 0)).astype(np.uint8)
    if bridge:
        array[4:6, 6:9, 14:16] = 2
        array[4:6, 6:9, 16:18] = 1
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    return image


def stored(image: sitk.Image, direction: np.ndarray) -> sitk.Image:
    """The same object in the world on a grid whose axes run in other directions."""
    straight = np.array_equal(np.abs(direction), np.round(np.abs(direction)))
    if straight:
        filter_ = sitk.DICOMOrientImageFilter()
        filter_.SetDesiredCoordinateOrientation(
            sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction.ravel().tolist())
        )
        return filter_.Execute(image)
    grid = sitk.Image(40, 40, 12, sitk.sitkUInt8)
    grid.SetSpacing(SPACING)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((0.0, -25.0, -5.0))
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_sides_do_not_depend_on_the_directions_of_the_axes(direction, bridge):
    truth = stored(lungs(bridge), direction)
    sides = sitk.GetArrayFromImage(split_lungs(sitk.Cast(truth != 0, sitk.sitkInt32), "mask"))
    wanted = sitk.GetArrayFromImage(truth)
    assert ((sides > 0) == (wanted > 0)).all()
    assert (sides != wanted).sum() <= (24 if bridge else 0)


def test_crumbs_belong_to_the_nearer_lung():
    mask = lungs()
    mask[29, 8, 5], mask[0, 0, 0] = 1, 1
    sides = split_lungs(sitk.Cast(mask != 0, sitk.sitkInt32), "mask")
    assert (sides[29, 8, 5], sides[0, 0, 0]) == (1, 2)


def above_each_other() -> sitk.Image:
    array = np.zeros((20, 10, 10), np.int32)
    array[1:8, 2:8, 2:8] = array[12:19, 2:8, 2:8] = 1
    return sitk.GetImageFromArray(array)


@pytest.mark.parametrize("mask", [sitk.Cast(lungs() == 2, sitk.sitkInt32), above_each_other()], ids=["one", "stacked"])
def test_what_is_not_two_lungs_cannot_be_split(mask):
    with pytest.raises(BadInputError, match=r"mask: cannot be split .* --one_lung"):
        split_lungs(mask, "mask")


@pytest.fixture
def write(tmp_path):
    """Write a mask, or a scan that fits one."""

    def write_(image: sitk.Image, name: str, scan: bool = False) -> Path:
        if scan:
            noise = np.random.default_rng(len(name)).integers(-1000, 400, image.GetSize()[::-1]).astype(np.int16)
            like = image
            image = sitk.GetImageFromArray(noise)
            image.CopyInformation(like)
        path = tmp_path / "ct" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path

    return write_


@pytest.fixture
def convert(tmp_path):
    def run(*arguments: str, masks: bool = False) -> int:
        where = ["-i", str(tmp_path / "ct" / ("scans" if masks else "")), "--raw", str(tmp_path / "raw")]
        where += ["--masks", str(tmp_path / "ct" / "masks")] if masks else []
        return convert_dataset.main(
            ["lung_ct", *where, "-d", "7", "--name", "Lung", "--disable_progress_bar", *arguments]
        )

    return run


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "raw" / "Dataset007_Lung"


def canonical(image: sitk.Image) -> list[int]:
    return sitk.GetArrayFromImage(to_canonical(image)).astype(int).ravel().tolist()


def test_masks_of_both_lungs_beside_the_scans_are_split(write, convert, target):
    for name, direction in DIRECTIONS.items():
        if name != "oblique":
            write(stored(lungs(), direction), f"{name}.nii.gz", scan=True)
            write(stored(lungs(), direction) != 0, f"{name}_mask.nii.gz")
    write(lungs(), "alone.nii.gz", scan=True)
    assert convert() == 0
    dataset = load_dataset(target)
    assert check_dataset(dataset) == []
    assert dataset.channel_names == ("CT",)
    assert json.loads((target / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "Left-Lung": 1,
        "Right-Lung": 2,
    }
    assert [path.name for path in (target / "imagesUn").iterdir()] == ["alone_0000.nii.gz"]
    for case in dataset.labelled:
        assert canonical(read_labels(target / "labelsTr" / f"{case}.nii.gz")) == canonical(lungs())


def test_scans_keep_their_hounsfield_units_in_another_format(write, convert, target):
    scan = write(lungs(), "a.nrrd", scan=True)
    write(lungs() != 0, "a_mask.nrrd")
    assert convert() == 0
    copy = sitk.ReadImage(str(target / "imagesTr" / "a_0000.nii.gz"))
    assert copy.GetPixelID() == sitk.sitkInt16
    assert (sitk.GetArrayFromImage(copy) == sitk.GetArrayFromImage(sitk.ReadImage(str(scan)))).all()


def test_two_unnamed_values_are_told_apart_by_their_place(write, convert, target):
    write(lungs(), "scans/a_exp.nii.gz", scan=True)
    write(sitk.Cast(lungs() == 1, sitk.sitkUInt8) * 30 + sitk.Cast(lungs() == 2, sitk.sitkUInt8) * 20, "masks/a.nii.gz")
    assert convert("--image_suffix", "_exp", masks=True) == 0
    assert canonical(read_labels(target / "labelsTr" / "a.nii.gz")) == canonical(lungs())


def test_lobes_are_joined_by_named_values(write, convert, target):
    lobes = sitk.GetArrayFromImage(lungs())
    lobes[:5][lobes[:5] > 0] += 10
    image = sitk.GetImageFromArray(lobes)
    image.CopyInformation(lungs())
    write(lungs(), "a.nii.gz", scan=True)
    write(image, "a_mask.nii.gz")
    assert convert("--left_values", "1", "11", "--right_values", "2", "12") == 0
    assert canonical(read_labels(target / "labelsTr" / "a.nii.gz")) == canonical(lungs())


def test_a_file_a_side_is_joined(write, convert, target):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs() == 1, "a_left.nii.gz")
    write(lungs() == 2, "a_right.nii.gz")
    assert convert("--left_suffix", "_left", "--right_suffix", "_right") == 0
    assert [path.name for path in (target / "imagesTr").iterdir()] == ["a_0000.nii.gz"]
    assert canonical(read_labels(target / "labelsTr" / "a.nii.gz")) == canonical(lungs())


def test_both_lungs_can_be_one_structure(write, convert, target):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs() == 2, "a_mask.nii.gz")
    assert convert("--one_lung") == 0
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "Lung": 1}


def test_swapped_sides_are_pointed_out(write, convert, capsys):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs(), "a_mask.nii.gz")
    assert convert("--left_values", "2", "--right_values", "1") == 0
    assert "the left lung lies on the patient's right" in capsys.readouterr().err


def cannot_be_split(write) -> str:
    write(lungs() == 1, "b_mask.nii.gz")
    return "b_mask.nii.gz: cannot be split into a left and a right lung"


def too_many_values(write) -> str:
    mask = lungs()
    mask[0, 0, 0] = 9
    write(mask, "b_mask.nii.gz")
    return "b_mask.nii.gz: holds 3 values (1, 2, 9); say which"


def empty(write) -> str:
    write(lungs() > 5, "b_mask.nii.gz")
    return "b_mask.nii.gz: is empty"


def negative(write) -> str:
    write(sitk.Cast(lungs() != 0, sitk.sitkInt16) * -1, "b_mask.nii.gz")
    return "b_mask.nii.gz: holds the value -1"


def other_grid(write) -> str:
    mask = lungs() != 0
    mask.SetOrigin((0.0, 0.0, 5.0))
    write(mask, "b_mask.nii.gz")
    return "b_mask.nii.gz: its grid differs from that of b.nii.gz: origin"


def no_scan(write) -> str:
    write(lungs() != 0, "b_mask.nii.gz").with_name("b.nii.gz").unlink()
    return "b_mask.nii.gz: a mask without a scan"


@pytest.mark.parametrize("spoil", [cannot_be_split, too_many_values, empty, negative, other_grid, no_scan])
def test_a_bad_case_is_left_out_and_named(write, convert, target, capsys, spoil):
    for name in ("a", "b"):
        write(lungs(), f"{name}.nii.gz", scan=True)
    write(lungs() != 0, "a_mask.nii.gz")
    message = spoil(write)
    assert convert() == 6
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert load_dataset(target).labelled == ("a",)


def one_side_only(write) -> str:
    write(lungs() == 1, "b_l.nii.gz")
    return "b_l.nii.gz: the mask of the other lung is missing"


def shared_voxels(write) -> str:
    write(lungs() == 1, "b_l.nii.gz")
    write(lungs() != 0, "b_r.nii.gz")
    return f"shares {(sitk.GetArrayFromImage(lungs()) == 1).sum()} voxels with b_r.nii.gz"


def sides_on_two_grids(write) -> str:
    write(lungs() == 1, "b_l.nii.gz")
    write((lungs() == 2)[1:], "b_r.nii.gz")
    return "b_r.nii.gz: its grid differs from that of b_l.nii.gz: size"


def an_empty_side(write) -> str:
    write(lungs() == 1, "b_l.nii.gz")
    write(lungs() == 7, "b_r.nii.gz")
    return "b_r.nii.gz: is empty"


@pytest.mark.parametrize("spoil", [one_side_only, shared_voxels, sides_on_two_grids, an_empty_side])
def test_a_bad_pair_of_masks_is_left_out_and_named(write, convert, capsys, spoil):
    for name in ("a", "b"):
        write(lungs(), f"{name}.nii.gz", scan=True)
    write(lungs() == 1, "a_l.nii.gz")
    write(lungs() == 2, "a_r.nii.gz")
    message = spoil(write)
    assert convert("--left_suffix", "_l", "--right_suffix", "_r") == 6
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_values_that_nobody_named_are_refused(write, convert, capsys):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs(), "a_mask.nii.gz")
    assert convert("--left_values", "1", "--right_values", "3") == 3
    assert "holds 2, which --left_values and --right_values do not name" in capsys.readouterr().err


def test_two_values_that_are_not_side_by_side_are_refused(write, convert, capsys):
    mask = above_each_other()
    mask[:, :, 10:] = mask[:, :, 10:] * 2
    write(mask, "a.nii.gz", scan=True)
    write(mask, "a_mask.nii.gz")
    assert convert() == 3
    assert "its values 1 and 2 do not lie left and right of each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--left_suffix", "_l"],
        ["--left_suffix", "_l", "--right_suffix", "_l"],
        ["--left_suffix", "_l", "--right_suffix", "_r", "--mask_suffix", "_m"],
        ["--left_values", "1"],
        ["--left_values", "1", "--right_values", "1"],
        ["--mask_suffix", ""],
        ["--structures", "all"],
        ["--masks", "nowhere"],
    ],
)
def test_options_that_do_not_fit_are_refused(write, convert, target, arguments):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs(), "a_mask.nii.gz")
    assert convert(*arguments) == 2
    assert not target.exists()


def test_scans_of_one_name_are_refused(write, convert, capsys):
    write(lungs(), "a.nii.gz", scan=True)
    write(lungs(), "a.nrrd", scan=True)
    assert convert() == 3
    assert "have one name; remove one of them" in capsys.readouterr().err


def test_a_folder_without_scans_is_refused(write, convert, capsys):
    write(lungs(), "a_mask.nii.gz")
    assert convert() == 3
    assert "has no scan" in capsys.readouterr().err
