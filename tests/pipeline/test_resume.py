"""A training that is killed and continued ends in the very same model as one that is left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from rrlsam.cli import train
from rrlsam.engine import fit
how = sys.argv.pop(1)
if not how:
    fit.SECONDS_BETWEEN_CHECKPOINTS = -1.0  # after every iteration
if how == "slowly":  # from the third iteration on, each takes hours
    import time
    from rrlsam.data.batches import Batches
    draw = Batches.draw
    def slow_draw(batches, stage, iteration, *given, **named):
        if iteration > 1:
            time.sleep(3600)
        return draw(batches, stage, iteration, *given, **named)
    Batches.draw = slow_draw
sys.exit(train.main(sys.argv[1:]))
"""
ITERATIONS = 6
SECONDS_TO_STOP = 10.0
"""The promise, of a machine that does nothing else."""


@pytest.fixture(scope="module")
def planned(make_project) -> Any:
    """Of bodies that are looked at in the mirror too."""
    project = make_project(n_labelled=1, n_unlabelled=2, two_sided=True)
    assert project.plan().code == 0
    return project


def command(project: Any, results: Path, *more: str, rarely: str = "") -> list[str]:
    roots = [*project.roots("raw", "preprocessed"), "--results", str(results)]
    fixed = ["--sam", "none", "--iterations", str(ITERATIONS), "-device", "cpu", "--disable_progress_bar"]
    return [sys.executable, "-c", DRIVER, rarely, "1", "0", *fixed, *roots, *more]


@pytest.fixture(scope="module")
def start(outside_package: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(outside_package)}

    def start(arguments: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def fold_of(project: Any, results: Path) -> Path:
    return results / project.model.relative_to(project.folder / "results") / "fold_0"


@pytest.fixture(scope="module")
def whole(planned, start, tmp_path_factory) -> Path:
    """The fold of a training that nobody interrupted."""
    results = tmp_path_factory.mktemp("whole")
    process = start(command(planned, results))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return fold_of(planned, results)


def lines(fold: Path) -> int:
    path = fold / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(process: subprocess.Popen[str], fold: Path, line: int, number: int = signal.SIGKILL) -> str:
    """Send a signal as soon as that many iterations are in the journal; returns what the command said."""
    deadline = time.monotonic() + 120
    while lines(fold) < line and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    began, patience = time.monotonic(), SECONDS_TO_STOP * max(1.0, os.getloadavg()[0])
    said = process.communicate(timeout=300)[0]
    assert time.monotonic() - began < patience
    return said


def assert_same(fold: Path, whole: Path) -> None:
    assert (fold / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    first, second = (torch.load(f / "checkpoint_final.pt", weights_only=True)["networks"] for f in (fold, whole))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_in_several_places_and_continued_it_is_the_same_model(planned, start, whole, tmp_path):
    """Within stage 1b, within a round and between: three kills of one training."""
    fold = fold_of(planned, tmp_path)
    kills = (2, ITERATIONS, 2 * ITERATIONS + 1)
    for number, line in enumerate(kills):
        process = start(command(planned, tmp_path, *(["--c"] if number else [])))
        kill_at(process, fold, line)
        assert process.returncode == -signal.SIGKILL, "the training ended before it was killed"
        assert not (fold / "checkpoint_final.pt").exists()
    process = start(command(planned, tmp_path, "--c"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert_same(fold, whole)


def test_a_journal_that_ran_ahead_of_the_checkpoint_is_cut(planned, start, whole, tmp_path):
    fold = fold_of(planned, tmp_path)
    process = start(command(planned, tmp_path))
    kill_at(process, fold, 3)
    with (fold / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"stage": "joint_reg_seg", "iterat')
    process = start(command(planned, tmp_path, "--c"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert_same(fold, whole)


def test_continuing_a_finished_training_changes_nothing(planned, whole, tmp_path):
    fold = fold_of(planned, tmp_path)
    shutil.copytree(whole, fold)
    answer = planned.train("0", "--c", "--results", str(tmp_path), iterations=ITERATIONS)
    assert answer.code == 0, answer.err
    assert_same(fold, whole)


def test_continuing_with_another_seed_is_refused(planned, whole, tmp_path):
    fold = fold_of(planned, tmp_path)
    shutil.copytree(whole, fold)
    answer = planned.train("0", "--c", "--seed", "5", "--results", str(tmp_path))
    assert answer.code == 3
    assert "was trained with other settings or scans (seed)" in answer.err


def test_continuing_with_another_grid_or_label_is_refused(make_project, edit_json):
    project = make_project(n_labelled=2, n_unlabelled=1, n_test=0)
    assert project.plan("-f", "all", "--atlas", "lab_00").code == 0
    assert project.train("all", "--atlas", "lab_00", iterations=1).code == 0
    (plan,) = project.prepared.rglob("plan.json")
    as_planned = plan.read_text()
    grid = json.loads(as_planned)["grid"]
    edit_json(plan, grid=grid | {"start_vox": [n + 1 for n in grid["start_vox"]]})
    answer = project.train("all", "--atlas", "lab_00", "--c", iterations=1)
    assert answer.code == 3
    assert "grid lies elsewhere than when training began" in answer.err
    plan.write_text(as_planned)
    label = str(project.dataset / "labelsTr" / "lab_00.nii.gz")
    image = sitk.ReadImage(label)
    sitk.WriteImage(sitk.BinaryErode(image, (1, 1, 1), foregroundValue=1), label)
    answer = project.train("all", "--atlas", "lab_00", "--c", iterations=1)
    assert answer.code == 3
    assert "was trained with other settings or scans (files); put them back" in answer.err


def test_a_training_of_long_iterations_stops_within_seconds_and_can_be_continued(planned, start, whole, tmp_path):
    fold = fold_of(planned, tmp_path)
    process = start(command(planned, tmp_path, rarely="slowly"))
    kill_at(process, fold, 2, signal.SIGTERM)
    assert process.returncode == 143
    kept = torch.load(fold / "checkpoint_latest.pt", weights_only=True)
    assert kept["iteration"] == lines(fold) == 2
    out, _ = (process := start(command(planned, tmp_path, "--c"))).communicate(timeout=300)
    assert process.returncode == 0, out
    assert_same(fold, whole)


def test_a_stopped_training_keeps_all_that_it_did_and_goes_on_as_if_nothing_had_been(planned, start, whole, tmp_path):
    """Nothing but being stopped makes it keep its state here."""
    fold = fold_of(planned, tmp_path)
    process = start(command(planned, tmp_path, "--overwrite", rarely="rarely"))
    said = kill_at(process, fold, 1, signal.SIGINT)
    assert process.returncode == 130
    *_, before, last = said.splitlines()
    assert "--c goes on from there" in before
    assert last.endswith(("interrupted", "terminated"))
    assert "Traceback" not in said
    kept = torch.load(fold / "checkpoint_latest.pt", weights_only=True)
    assert kept["iteration"] == lines(fold) > 0
    assert kept["journal_size"] == (fold / "metrics.jsonl").stat().st_size
    assert not [path for path in fold.rglob(".*")]
    out, _ = (process := start(command(planned, tmp_path, "--c"))).communicate(timeout=300)
    assert process.returncode == 0, out
    assert_same(fold, whole)
