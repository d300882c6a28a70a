"""Confidence without truth: values worked out by hand, and what is pointed out."""

import csv

import numpy as np
import pytest

from rrlsam.labels import LabelScheme, Structure
from rrlsam.prediction.confidence import (
    StructureConfidence,
    expected_dice,
    mean_predicted_dice,
    reasons_to_look,
    structure_confidences,
    write_confidences,
)

LABELS = LabelScheme(
    n_classes=3,
    structures=(Structure(name="whole", values=(1, 2)), Structure(name="core", values=(2,))),
    regions_class_order=(1, 2),
    ignore=None,
)


def a_structure(name: str = "core", *, volume: float = 2.0, dice: float = 0.9) -> StructureConfidence:
    return StructureConfidence(
        structure=name, volume_ml=volume, agreement=dice, expected_dice=dice, predicted_dice=dice
    )


def test_sure_probabilities_promise_a_dice_of_one():
    assert expected_dice(np.array([8.0]), np.array([8.0]), np.array([8.0])).tolist() == [1.0]


def test_probability_outside_of_the_mask_lowers_the_promise():
    assert expected_dice(np.array([6.0]), np.array([10.0]), np.array([8.0])).tolist() == [pytest.approx(12 / 18)]


def test_nothing_promised_and_nothing_found_agree():
    assert expected_dice(np.zeros(1), np.zeros(1), np.zeros(1)).tolist() == [1.0]


def test_a_structure_is_compared_by_the_union_of_its_values():
    mask, warped = np.array([[[1, 2, 2, 0]]]), np.array([[[2, 2, 0, 0]]])
    whole, core = structure_confidences(mask, warped, np.array([1.0, 0.25]), LABELS, voxel_ml=0.5)
    assert (whole.volume_ml, core.volume_ml) == (1.5, 1.0)
    assert whole.agreement == pytest.approx(4 / 5)
    assert core.agreement == pytest.approx(2 / 4)
    assert core.predicted_dice == pytest.approx((0.5 * 0.25) ** 0.5)


def test_what_neither_shows_is_no_success_and_counts_for_nothing():
    mask, warped = np.array([[[1, 1, 0, 0]]]), np.array([[[1, 1, 0, 0]]])
    whole, core = found = structure_confidences(mask, warped, np.array([0.81, 1.0]), LABELS, voxel_ml=0.5)
    assert (core.agreement, core.predicted_dice, core.shown) == (1.0, 0.0, False)
    assert mean_predicted_dice(found) == whole.predicted_dice == pytest.approx(0.9)
    assert mean_predicted_dice((core,)) == 0.0


def test_scans_alike_and_sure_are_nothing_to_look_at():
    assert reasons_to_look([(a_structure(volume=2 + 0.01 * i),) for i in range(8)]) == [()] * 8


@pytest.mark.parametrize(
    ("strange", "reason"),
    [
        (a_structure(volume=0.0), "core is missing"),
        (a_structure(volume=20.0), "core is larger than in the other scans"),
        (a_structure(volume=0.2), "core is smaller than in the other scans"),
        (a_structure(dice=0.6), "core is uncertain"),
    ],
)
def test_a_strange_scan_is_pointed_out(strange, reason):
    scans = [(a_structure(volume=2 + 0.05 * i, dice=0.9 + 0.005 * i),) for i in range(7)]
    assert reasons_to_look([*scans, (strange,)]) == [()] * 7 + [(reason,)]


def test_a_single_scan_is_judged_by_itself():
    assert reasons_to_look([(a_structure(dice=0.3),)]) == [("core is uncertain",)]
    assert reasons_to_look([]) == []


def test_the_table_has_a_row_a_scan_and_structure(tmp_path):
    write_confidences([("a", (a_structure("whole"), a_structure()))], tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"], row["predicted_dice"]) for row in rows] == [
        ("a", "whole", "0.9000"),
        ("a", "core", "0.9000"),
    ]
