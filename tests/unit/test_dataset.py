import pytest

from rrlsam.errors import BadInputError, UnsafeError, UsageError
from rrlsam.scans.dataset import find_dataset, load_dataset


def test_scans_are_sorted_with_and_without_labels(tiny):
    assert tiny.labelled == tuple(f"lab_{i:02d}" for i in range(5))
    assert [scan.case for scan in tiny.scans if scan.label is None] == ["un_00", "un_01"]
    assert (tiny.channel_names, tiny.file_ending, tiny.num_training) == (("MRI",), ".nii.gz", 5)


def test_clutter_is_overlooked_and_strays_are_kept(tiny):
    folder = tiny.folder / "imagesTr"
    for name in (".DS_Store", "._lab_00_0000.nii.gz", "lab_00_0000.nii.gz.tmp", "loose.nii.gz", "lab_00_0001.nii.gz"):
        (folder / name).write_bytes(b"x")
    assert sorted(p.name for p in load_dataset(tiny.folder).strays) == ["lab_00_0001.nii.gz", "loose.nii.gz"]


def test_a_data_set_is_found_by_number_or_name(tiny):
    raw = tiny.folder.parent
    assert find_dataset(raw, "1") == find_dataset(raw, "001") == find_dataset(raw, "Dataset001_Tiny") == tiny.folder
    with pytest.raises(UsageError, match="no data set '7'; there are: Dataset001_Tiny"):
        find_dataset(raw, "7")
    (raw / "Dataset001_Other").mkdir()
    with pytest.raises(BadInputError, match="share one number"):
        find_dataset(raw, "1")


def test_a_missing_raw_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        find_dataset(tmp_path / "nowhere", "1")


def test_an_explicit_listing_replaces_the_folders(tiny, edit_json):
    listing = {"b": {"images": ["imagesTr/lab_00_0000.nii.gz"], "label": "labelsTr/lab_00.nii.gz"}}
    listing["a"] = {"images": ["imagesUn/un_00_0000.nii.gz"]}
    edit_json(tiny.folder / "dataset.json", dataset=listing)
    loaded = load_dataset(tiny.folder)
    assert [scan.case for scan in loaded.scans] == ["a", "b"]
    assert loaded.labelled == ("b",)


@pytest.mark.parametrize("case", ["../a", "a/b", "a\nb", "..", ""])
def test_a_case_name_that_leaves_its_folder_is_refused(tiny, edit_json, case):
    edit_json(tiny.folder / "dataset.json", dataset={case: {"images": []}})
    with pytest.raises(UnsafeError, match="would leave its folder"):
        load_dataset(tiny.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": None}, "is missing or of the wrong kind"),
        ({"labels": [1]}, "labels is missing or of the wrong kind"),
        ({"numTraining": None}, "numTraining is missing"),
        ({"file_ending": ".png"}, "must be one of"),
        ({"channel_names": {"1": "MRI"}}, "must be numbered"),
        ({"dataset": {"a": {"images": "a.nii.gz"}}}, "must list a file a channel"),
        ({"dataset": ["a"]}, "must map case names"),
    ],
)
def test_a_wrong_description_is_refused(tiny, edit_json, changes, message):
    edit_json(tiny.folder / "dataset.json", **changes)
    with pytest.raises(BadInputError, match=message):
        load_dataset(tiny.folder)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
def test_a_description_that_is_no_object_is_refused(tiny, text, message):
    (tiny.folder / "dataset.json").write_text(text)
    with pytest.raises(BadInputError, match=message):
        load_dataset(tiny.folder)


def test_a_folder_without_description_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no such file"):
        load_dataset(tmp_path)


def test_an_unknown_case_is_refused(tiny):
    with pytest.raises(UsageError, match="no case named 'x'"):
        tiny.scan("x")
