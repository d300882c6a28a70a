"""Fingerprint to plan, against files that were read by a person. README.md says how to refresh them."""

import runpy
from pathlib import Path

import pytest

from rrlsam.plan import Plan, check_plan
from rrlsam.system.jsonio import load_json, to_json

FOLDER = Path(__file__).parent
GOLDEN: dict[str, Plan] = runpy.run_path(str(FOLDER / "refresh.py"))["golden_plans"]()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_plan_is_the_one_on_file(name: str):
    assert to_json(GOLDEN[name]) == (FOLDER / "plans" / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_file_reads_back_as_a_valid_plan(name: str):
    path = FOLDER / "plans" / f"{name}.json"
    assert check_plan(load_json(Plan, path), source=name) == GOLDEN[name]


def test_every_file_is_of_a_golden_data_set():
    assert sorted(path.stem for path in (FOLDER / "plans").glob("*.json")) == sorted(GOLDEN)
