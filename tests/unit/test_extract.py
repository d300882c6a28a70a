from dataclasses import replace

import numpy as np
import pytest

from rrlsam.errors import BadInputError
from rrlsam.labels import parse_labels
from rrlsam.planning import extract
from rrlsam.planning.extract import (
    extract_atlas_fingerprint,
    extract_fingerprint,
    extract_label_offset,
    left_right_pairs,
)
from rrlsam.planning.fingerprint import StoredAtlas
from rrlsam.planning.label_offset import LabelOffset
from rrlsam.scans.dataset import load_dataset


def test_every_scan_is_described_without_labels(tiny):
    found = extract_fingerprint(tiny, workers=2)
    assert [scan.case for scan in found.scans] == [scan.case for scan in tiny.scans]
    first = found.scans[0]
    assert (first.size_vox, first.spacing_mm, first.orientation) == ((20, 24, 22), (1.0, 1.0, 1.0), "LPS")
    assert all(a <= b for a, b in zip(first.cropped_size_vox, first.size_vox, strict=True))
    assert first.intensity[0].minimum <= first.intensity[0].median <= first.intensity[0].maximum
    assert set(found.mean_distance) == {scan.case for scan in tiny.scans}
    assert all(0 <= value <= 2 for value in found.mean_distance.values())


def test_other_labels_give_the_same_fingerprint(tiny, phantoms):
    before = extract_fingerprint(tiny)
    for scan in tiny.scans:
        if scan.label is not None:
            phantoms.write_volume(np.random.default_rng(0).integers(0, 3, phantoms.SIZE).astype(np.uint8), scan.label)
    assert extract_fingerprint(tiny) == before


def test_only_changed_scans_are_read_again(tiny, phantoms, monkeypatch):
    before = extract_fingerprint(tiny)
    phantoms.write_volume(phantoms.phantom(55)[0][0], tiny.scans[2].images[0])
    read = []
    original = extract.read_mended
    monkeypatch.setattr(extract, "read_mended", lambda paths, how: read.append(paths) or original(paths, how))
    after = extract_fingerprint(tiny, before)
    assert read == [tiny.scans[2].images]
    assert after == extract_fingerprint(tiny)
    assert after != before


def test_a_scan_moved_or_brightened_keeps_its_thumbnail(tiny, phantoms):
    array = phantoms.phantom(0)[0][0]
    phantoms.write_volume(array * 7, tiny.scans[1].images[0], spacing=(2.0, 2.0, 2.0), origin=(90.0, 0.0, 0.0))
    scans = extract_fingerprint(tiny).scans
    assert scans[1].signature == scans[0].signature


def test_all_bad_scans_are_named_together(tiny):
    tiny.scans[0].images[0].unlink()
    tiny.scans[3].images[0].write_bytes(b"")
    with pytest.raises(BadInputError, match=r"(?s)2 of 7 cases failed:.*lab_00_0000.*lab_03_0000"):
        extract_fingerprint(tiny)


def test_the_atlas_is_described_with_its_label(tiny, phantoms):
    _, label = phantoms.phantom(0)
    found = extract_atlas_fingerprint(tiny.scan("lab_00"), tiny.labels)
    assert [(s.label, s.voxels) for s in found.structures] == [(v, int((label == v).sum())) for v in (1, 2)]
    inside = np.argwhere(label == 2)
    assert found.structures[1].box_start == tuple(inside.min(0).tolist())
    assert found.structures[1].box_stop == tuple((inside.max(0) + 1).tolist())
    assert found.foreground_intensity[0].minimum > 60


def test_an_atlas_is_looked_at_again_only_if_its_files_or_labels_change(tiny, phantoms, monkeypatch):
    looked_at = []
    monkeypatch.setattr(extract, "find_label_offset", lambda *_, **__: looked_at.append(1) or LabelOffset())
    scan, labels = tiny.scan("lab_00"), tiny.labels
    known = StoredAtlas(labels=labels, fingerprint=extract_atlas_fingerprint(scan, labels))
    assert extract_atlas_fingerprint(scan, labels, known) is known.fingerprint
    assert len(looked_at) == 1
    renamed = replace(labels, structures=tuple(replace(s, name=f"other {s.name}") for s in labels.structures))
    assert extract_atlas_fingerprint(scan, renamed, known) is not known.fingerprint
    phantoms.write_volume(phantoms.phantom(1)[1], scan.label)
    assert extract_atlas_fingerprint(scan, labels, known).structures != known.fingerprint.structures
    assert len(looked_at) == 3


def test_ignored_voxels_are_no_foreground(tmp_path, make_dataset):
    dataset = load_dataset(make_dataset(tmp_path / "Dataset002_Ignore", 1, 0, ignore=True))
    found = extract_atlas_fingerprint(dataset.scans[0], dataset.labels)
    assert [s.label for s in found.structures] == [1, 2]
    assert found.foreground_intensity[0].minimum > 60


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "only background"), (9, r"not declared in dataset\.json: 9 \("), (None, "its grid differs")],
)
def test_a_useless_atlas_is_refused(tiny, phantoms, value, message):
    shape = phantoms.SIZE if value is not None else (5, 5, 5)
    label = np.full(shape, value or 0, dtype=np.uint8)
    phantoms.write_volume(label, tiny.scans[0].label)
    with pytest.raises(BadInputError, match=message):
        extract_atlas_fingerprint(tiny.scans[0], tiny.labels)


def test_a_further_label_may_show_nothing(tiny, phantoms):
    """No lesion is a truth too; only the atlas has to show what to find."""
    phantoms.write_volume(np.zeros(phantoms.SIZE, dtype=np.uint8), tiny.scans[0].label)
    assert extract_label_offset(tiny.scans[0], tiny.labels) == LabelOffset()
    assert extract_label_offset(tiny.scans[1], tiny.labels).gain >= 1


def test_an_atlas_without_label_is_refused(tiny):
    with pytest.raises(BadInputError, match="un_00: has no label"):
        extract_atlas_fingerprint(tiny.scan("un_00"), tiny.labels)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left kidney", "right kidney"),
        ("L-Caudate", "R-Caudate"),
        ("lung_L", "lung_R"),
        ("lh.Amygdala", "RH.amygdala"),
        ("kidney_left", "kidney_right"),
        ("Left", "right"),
    ],
)
def test_sides_are_paired_by_name(left, right):
    scheme = parse_labels({"background": 0, right: 1, "spine": 2, left: 3}, None, source="x")
    assert left_right_pairs(scheme) == ((3, 1),)


@pytest.mark.parametrize("names", [("left lung", "right kidney"), ("liver", "rlung"), ("lung_L", "lung_upper")])
def test_other_names_are_not_paired(names):
    scheme = parse_labels({"background": 0, names[0]: 1, names[1]: 2}, None, source="x")
    assert left_right_pairs(scheme) == ()


def test_regions_of_several_values_are_not_paired():
    entries = {"background": 0, "left lung": [1, 2], "right lung": [3, 4], "left lobe": 1, "right lobe": 3}
    assert left_right_pairs(parse_labels(entries, [1, 3, 2, 4], source="x")) == ((1, 3),)
