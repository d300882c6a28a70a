"""Of several labelled scans the atlas is the one that serves best, found by images that training may see."""

import dataclasses

import numpy as np
import pytest

from rrlsam.planning import best_atlas as module
from rrlsam.planning.best_atlas import best_atlas
from rrlsam.planning.extract import extract_fingerprint
from rrlsam.planning.folds import make_fold
from rrlsam.scans.dataset import load_dataset
from rrlsam.system.progress import silent


@pytest.fixture
def asked(monkeypatch):
    """Cases of every search for services; the last in the alphabet serves best."""
    calls = []

    def find(scans, progress):
        calls.append([scan.case for scan in scans])
        return np.arange(len(scans)) / 10

    monkeypatch.setattr(module, "find_services", find)
    return calls


@pytest.fixture
def choose(tiny, tmp_path):
    def choose(*candidates: str, among: tuple[str, ...] = (), fingerprint=None) -> str:
        seen = among or tuple(scan.case for scan in tiny.scans)
        return best_atlas(tiny, fingerprint or extract_fingerprint(tiny), candidates, seen, tmp_path / "kept", silent)

    return choose


def test_the_candidate_that_serves_best_is_chosen_beside_all_others(choose, asked, tiny):
    assert choose("lab_00", "lab_02", "lab_01") == "lab_02"
    assert asked == [[scan.case for scan in tiny.scans]]


def test_what_was_found_is_kept_for_the_same_scans_only(choose, asked, tiny):
    first = choose("lab_00", "lab_01")
    assert choose("lab_00", "lab_01") == first
    assert len(asked) == 1
    choose("lab_00", "lab_01", among=("lab_00", "lab_01", "un_00"))
    assert len(asked) == 2
    seen = extract_fingerprint(tiny)
    other = dataclasses.replace(seen.scans[0], content="another")
    choose("lab_00", "lab_01", fingerprint=dataclasses.replace(seen, scans=(other, *seen.scans[1:])))
    assert len(asked) == 3


def test_of_many_scans_the_candidates_are_tried_first(choose, asked, monkeypatch):
    monkeypatch.setattr(module, "TRIED", 3)
    assert choose("lab_00", "lab_03") == "lab_03"
    assert len(asked[0]) == 3
    assert {"lab_00", "lab_03"} < set(asked[0])


def test_held_out_scans_are_not_looked_at(tiny, tmp_path, asked):
    def best(candidates, seen):
        return best_atlas(tiny, extract_fingerprint(tiny), candidates, seen, tmp_path, silent)

    fold = make_fold(tiny, extract_fingerprint(tiny), "1", best=best)
    assert fold.atlases == (max(case for case in tiny.labelled if case not in fold.validation),)
    assert fold.validation
    assert not set(fold.validation) & set(asked[0])
    make_fold(tiny, extract_fingerprint(tiny), "1", best=best, atlases=("lab_00",))
    assert len(asked) == 1


def test_a_scan_in_the_middle_serves_best(workspace, make_dataset, phantoms):
    """Phantoms deformed one way, not at all, and the other way; registered for real."""
    folder = make_dataset(workspace.root("raw") / "Dataset002_Line")
    for case, seed, amplitude in (("lab_00", 1, 3.0), ("lab_01", 0, 0.0), ("lab_02", 1, -3.0)):
        phantoms.write_volume(
            phantoms.phantom(seed, amplitude=amplitude)[0][0], folder / "imagesTr" / f"{case}_0000.nii.gz"
        )
    dataset = load_dataset(folder)
    cases = ("lab_00", "lab_01", "lab_02")
    assert best_atlas(dataset, extract_fingerprint(dataset), cases, cases, workspace.root("raw"), silent) == "lab_01"


def test_an_empty_scan_is_no_atlas_and_stops_nothing(workspace, make_dataset, phantoms, caplog):
    folder = make_dataset(workspace.root("raw") / "Dataset003_Empty")
    phantoms.write_volume(np.zeros((20, 24, 22), np.float32), folder / "imagesTr" / "lab_01_0000.nii.gz")
    dataset = load_dataset(folder)

    def best(*candidates):
        seen = extract_fingerprint(dataset)
        return best_atlas(dataset, seen, candidates, dataset.labelled, workspace.root("raw"), silent)

    assert best("lab_00", "lab_01") == "lab_00"
    assert "lab_01: is not tried as atlas: the lab_01 scan is one single intensity" in caplog.text
    assert best("lab_01") == "lab_01"
    assert "lab_01: is the atlas, since no scan with a label can be registered" in caplog.text
