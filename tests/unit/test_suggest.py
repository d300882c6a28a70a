"""Which scan to label: rankings worked out by hand, and phantoms of which one lies in the middle."""

import numpy as np
import pytest

from rrlsam.cli import suggest_atlas
from rrlsam.planning.suggest import Suggestion, ranking
from rrlsam.system.jsonio import load_json

ON_A_LINE = np.abs(np.subtract.outer(*2 * [np.array([0.0, 1.0, 2.0, 10.0, 11.0])]))
"""Distances of five scans, two of them far from the others."""


def test_the_first_is_the_one_nearest_to_all_others():
    assert ranking(ON_A_LINE, 1)[0] == 2


def test_two_atlases_share_the_scans_among_them():
    assert ranking(ON_A_LINE, 2)[:2] == [2, 3]


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_every_scan_has_one_rank(n):
    assert sorted(ranking(ON_A_LINE, n)) == [0, 1, 2, 3, 4]


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
    assert suggestion.candidates[0].distance < suggestion.candidates[1].distance
    assert (tmp_path / "out" / "suggestion.png").stat().st_size > 1000
    assert capsys.readouterr().out.splitlines()[1].split()[::2] == ["1", "b"]


def test_an_earlier_suggestion_is_not_replaced(scans, tmp_path, capsys):
    kept = tmp_path / "out" / "suggestion.json"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert suggest_atlas.main(["-i", str(scans), "-o", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert kept.read_text() == "mine"


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
