"""Which scan to label: rankings worked out by hand, and phantoms of which one lies in the middle."""

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli import suggest_atlas
from rrlsam.planning.suggest import Suggestion, ranking
from rrlsam.planning.trials import PARTNERS, correlation_after, services, trial_image, trial_pairs
from rrlsam.system.jsonio import load_json

ON_A_LINE = np.abs(np.subtract.outer(*2 * [np.array([0.0, 1.0, 2.0, 10.0, 11.0])]))
"""Distances of five scans, two of them far from the others."""
SERVICE = np.array([0.3, np.nan, 0.5, np.nan, 0.4])


def test_the_first_serves_best_and_those_not_tried_come_last():
    assert ranking(ON_A_LINE, SERVICE, 1) == [2, 4, 0, 1, 3]


def test_two_atlases_share_the_scans_among_them():
    assert ranking(ON_A_LINE, SERVICE, 2) == [2, 3, 4, 0, 1]


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_every_scan_has_one_rank(n):
    assert sorted(ranking(ON_A_LINE, SERVICE, n)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 30])
def test_every_scan_is_registered_with_as_many_others_both_ways(n):
    pairs = trial_pairs(n)
    assert len(set(pairs)) == len(pairs)
    assert {(b, a) for a, b in pairs} == set(pairs)
    assert all(a != b for a, b in pairs)
    assert np.unique([a for a, _ in pairs], return_counts=True)[1].tolist() == [min(PARTNERS, n - 1)] * n


def test_two_scans_serve_each_other_alike():
    assert services(np.array([[np.nan, 0.3], [0.5, np.nan]])).tolist() == [0.4, 0.4]
    assert ranking(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.4, 0.4]), 1) == [0, 1]


def test_a_scan_in_no_pair_has_no_service():
    known = np.array([[np.nan, 0.3, np.nan], [0.5, np.nan, np.nan], [np.nan] * 3])
    assert np.isnan(services(known)).tolist() == [False, False, True]
    assert np.isnan(services(np.full((1, 1), np.nan))).all()


def test_a_channel_that_is_not_compared_may_be_empty(phantoms):
    image = sitk.GetImageFromArray(phantoms.phantom(0)[0][0])
    both = sitk.Compose(image, 0 * image)
    assert sitk.GetArrayFromImage(trial_image(both, "a")).tolist() == sitk.GetArrayFromImage(image).tolist()


@pytest.mark.parametrize("n", [3, 4, 7, 12])
def test_what_scans_give_is_found_from_few_pairs(n):
    """Exactly, if correlations add up as they are taken to."""
    random = np.random.default_rng(n)
    moving, fixed = random.uniform(0.1, 0.4, (2, n))
    known = np.full((n, n), np.nan)
    for a, b in trial_pairs(n):
        known[a, b] = moving[a] + fixed[b]
    np.testing.assert_allclose(services(known), moving + fixed, atol=1e-6)


def test_the_correlation_after_registration_is_one_for_a_deformed_copy_only(phantoms):
    images = [
        sitk.GetImageFromArray(phantoms.phantom(seed, amplitude=amplitude)[0][0])
        for seed, amplitude in ((0, 0.0), (1, 2.0))
    ]
    random = np.random.default_rng(0).normal(size=images[0].GetSize()[::-1]).astype(np.float32)
    assert correlation_after(images[0], images[0]) > 0.99
    assert correlation_after(images[0], images[1]) > correlation_after(images[0], sitk.GetImageFromArray(random)) + 0.2


@pytest.fixture
def scans(tmp_path, phantoms):
    """Three phantoms, deformed one way, not at all, and the other way."""
    for case, seed, amplitude in (("a", 1, 3.0), ("b", 0, 0.0), ("c", 1, -3.0)):
        phantoms.write_volume(
            phantoms.phantom(seed, amplitude=amplitude)[0][0], tmp_path / "in" / f"{case}_0000.nii.gz"
        )
    return tmp_path / "in"


def test_the_scan_in_the_middle_is_suggested(scans, tmp_path, capsys):
    assert suggest_atlas.main(["-i", str(scans), "-o", str(tmp_path / "out")]) == 0
    suggestion = load_json(Suggestion, tmp_path / "out" / "suggestion.json")
    assert [c.rank for c in suggestion.candidates] == [1, 2, 3]
    assert suggestion.candidates[0].case == "b"
    found = [c.service or 0.0 for c in suggestion.candidates]
    assert min(found) > 0
    assert found == sorted(found, reverse=True)
    assert (tmp_path / "out" / "suggestion.png").stat().st_size > 1000
    assert capsys.readouterr().out.splitlines()[1].split()[::3] == ["1", "b"]


def test_an_earlier_suggestion_is_not_replaced(scans, tmp_path, capsys):
    kept = tmp_path / "out" / "suggestion.json"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert suggest_atlas.main(["-i", str(scans), "-o", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert kept.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told_before_the_work(scans, capsys, monkeypatch):
    monkeypatch.setattr("rrlsam.planning.suggest.suggest_atlases", lambda *given: pytest.fail("too late"))
    assert suggest_atlas.main(["-i", str(scans), "-o", "/proc/rrlsam"]) == 4
    assert "/proc/rrlsam: cannot be written" in capsys.readouterr().err


def test_a_scan_that_cannot_be_read_does_not_stop_the_others(scans, capsys):
    (scans / "d_0000.nii.gz").write_bytes(b"no scan")
    assert suggest_atlas.main(["-i", str(scans)]) == 6
    captured = capsys.readouterr()
    assert "1 of 4 scans were left out: d:" in captured.err
    assert len(captured.out.splitlines()) == 4


def test_more_atlases_than_scans_are_refused(scans, capsys):
    assert suggest_atlas.main(["-i", str(scans), "-n", "4"]) == 3
    assert "3 scan(s) can be compared, 4 are needed" in capsys.readouterr().err


def test_of_many_unreadable_scans_ten_are_named(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"c{number:02d}_0000.nii.gz").touch()
    assert suggest_atlas.main(["-i", str(tmp_path)]) == 3
    assert "c09 and 20 more" in capsys.readouterr().err
