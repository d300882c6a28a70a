"""The two newest checkpoints of a training: which of them is used, and what damage is noticed."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rrlsam.engine.fields import FOLDER
from rrlsam.engine.fit import Run
from rrlsam.engine.journal import Journal
from rrlsam.errors import BadInputError
from rrlsam.models.checkpoint import PREVIOUS, load_checkpoint, load_latest, require_same_kind, save_checkpoint
from rrlsam.settings import FINAL, LATEST

DAMAGES = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "empty": lambda whole: b"",
    "a flipped bit": lambda whole: flip(whole, len(whole) // 2),
    "a flipped bit of the checksum": lambda whole: flip(whole, len(whole) - 5),
}


def flip(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]


def damage(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    """Kept after one iteration and after two."""
    run = make_run()
    for iteration in (1, 2):
        run.keep(dataclasses.replace(run.progress, stage="joint_reg_seg", iteration=iteration))
    return run


def test_the_newest_checkpoint_and_the_one_before_it_are_kept(run):
    assert load_checkpoint(run.folder / LATEST).progress.iteration == 2
    assert load_checkpoint(run.folder / PREVIOUS).progress.iteration == 1
    kept = load_latest(run.folder)
    assert kept is not None
    assert kept.progress.iteration == 2


def test_there_is_a_newest_one_at_every_moment(run, monkeypatch):
    """Killed without one, a training that replaces another would give its place back to that."""
    replace, there = os.replace, []

    def looked_at(*paths: Path) -> None:
        replace(*paths)
        there.append((run.folder / LATEST).exists())

    monkeypatch.setattr(os, "replace", looked_at)
    run.keep(dataclasses.replace(run.progress, iteration=3))
    assert there
    assert all(there)


def test_where_files_cannot_be_linked_the_one_before_is_a_copy(run, monkeypatch):
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run.keep(dataclasses.replace(run.progress, iteration=3))
    kept = [load_checkpoint(run.folder / name).progress.iteration for name in (LATEST, PREVIOUS)]
    assert kept == [3, 2]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_one_gives_way_to_the_one_before_it_with_a_warning(run, how, caplog):
    damage(run.folder / LATEST, how)
    with caplog.at_level(logging.WARNING, logger="rrlsam"):
        kept = load_latest(run.folder)
    assert kept is not None
    assert kept.progress.iteration == 1
    assert f"{LATEST}: " in caplog.text
    assert f"going on from the one before it, {PREVIOUS}" in caplog.text


def test_a_training_killed_between_the_two_goes_on_from_the_one_before(run):
    (run.folder / LATEST).unlink()
    kept = load_latest(run.folder)
    assert kept is not None
    assert kept.progress.iteration == 1


def test_a_damaged_one_never_takes_the_place_of_a_good_one(run):
    damage(run.folder / LATEST, "cut")
    kept = load_latest(run.folder)
    assert kept is not None
    run.keep(dataclasses.replace(kept.progress, iteration=7))
    assert load_checkpoint(run.folder / LATEST).progress.iteration == 7
    assert load_checkpoint(run.folder / PREVIOUS).progress.iteration == 1


@pytest.mark.parametrize("how", DAMAGES)
def test_if_all_are_damaged_that_is_said(run, how):
    damage(run.folder / LATEST, how)
    damage(run.folder / PREVIOUS, how)
    with pytest.raises(BadInputError, match=rf"{LATEST}: .*so is the one before it, .*{PREVIOUS}.*--overwrite"):
        load_latest(run.folder)


def test_the_only_one_being_damaged_is_said(run):
    (run.folder / PREVIOUS).unlink()
    damage(run.folder / LATEST, "cut")
    with pytest.raises(BadInputError, match=f"{LATEST}: not a readable checkpoint"):
        load_latest(run.folder)


def test_a_fold_that_was_never_kept_has_none(tmp_path):
    assert load_latest(tmp_path) is None


def test_every_flipped_byte_is_noticed(run):
    path = run.folder / FINAL
    save_checkpoint(run.checkpoint(), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(flip(whole, place))
        with pytest.raises(BadInputError, match=FINAL):
            load_checkpoint(path)


def test_a_checkpoint_of_networks_with_another_prior_is_refused(run):
    content = torch.load(run.folder / LATEST, weights_only=True)
    torch.save(content | {"format": 3}, run.folder / LATEST)
    with pytest.raises(BadInputError, match="another program or version, train again"):
        load_checkpoint(run.folder / LATEST)


def test_a_checkpoint_of_todays_format_must_have_a_checksum(run):
    torch.save(torch.load(run.folder / LATEST, weights_only=True), run.folder / LATEST)
    with pytest.raises(BadInputError, match="its checksum does not fit"):
        load_checkpoint(run.folder / LATEST)


@pytest.mark.parametrize("what", ["dataset", "channel_names", "labels"])
def test_folds_of_another_kind_are_named(run, what):
    first = run.checkpoint()
    others = {
        "dataset": "Dataset002_Other",
        "channel_names": ("CT",),
        "labels": dataclasses.replace(first.plan.labels, structures=first.plan.labels.structures[::-1]),
    }
    provenance = dataclasses.replace(first.provenance, fold="3")
    other = dataclasses.replace(first, provenance=provenance)
    require_same_kind(first, other, run.folder / FINAL, "do without")
    plan = dataclasses.replace(first.plan, **{what: others[what]})
    with pytest.raises(BadInputError, match=f"{FINAL}: fold 3 differs from fold all in its plan's {what}; do without"):
        require_same_kind(first, dataclasses.replace(other, plan=plan), run.folder / FINAL, "do without")


def test_fields_stay_as_long_as_one_of_the_two_needs_them(make_run):
    run = make_run()
    for stage in ("first", "second"):
        (run.folder / FOLDER / stage).mkdir(parents=True)

    def keep(stage: str) -> set[str]:
        run.keep(dataclasses.replace(run.progress, stage=stage))
        return {path.name for path in (run.folder / FOLDER).iterdir()}

    assert keep("first") == {"first"}
    assert keep("") == {"first"}
    (run.folder / FOLDER / "second").mkdir()
    assert keep("second") == {"second"}
    assert keep("") == {"second"}
    assert keep("") == set()


def test_a_journal_shorter_than_its_checkpoint_says_is_refused(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write("a", 0, 0.1, {})
    with pytest.raises(BadInputError, match=r"metrics\.jsonl: \d+ of 1000 bytes are left"):
        journal.cut(1000)
    journal.close()
