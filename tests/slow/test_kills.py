"""Planning, training and prediction are killed at random, over and over, and end as if nothing had happened."""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from rrlsam.models.checkpoint import load_latest
from rrlsam.system.storage import read_array

KILLS = 50
"""Of each command."""
SHORTEST_S = 0.5
OFTEN = "from rrlsam.engine import fit; fit.SECONDS_BETWEEN_CHECKPOINTS = 0.1; "
"""Checkpoints within stages too."""

pytestmark = pytest.mark.slow


def kill_at_random(start: Callable[[bool], Any], check: Callable[[], None], longest_s: float, seed: int) -> Any:
    """Start, kill and look KILLS times; then let it end, and return what it said. `start(True)` begins from nothing."""
    draw = random.Random(seed)
    kills, anew = 0, True
    while kills < KILLS:
        process, began = start(anew), time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(SHORTEST_S, longest_s))
            longest_s = min(longest_s, time.monotonic() - began)  # the machine is quicker than it was
        anew = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += process.returncode != 0
        check()
    return start(anew)


def seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    answer = work()
    assert answer.code == 0, answer.err
    return time.monotonic() - began


def is_whole(path: Path) -> bool:
    """Whether a file with a final name can be read to its end."""
    if path.suffix == ".b2nd":
        return read_array(path).size > 0
    if path.suffix == ".json":
        return path.read_bytes().rstrip().endswith((b"}", b"]"))
    if path.suffix == ".pt":
        return "format" in torch.load(path, weights_only=True)
    if path.name.endswith(".nii.gz"):
        image: Any = nibabel.load(path)
        return np.asarray(image.dataobj).size > 0
    return True


def assert_whole(folder: Path) -> None:
    assert all(is_whole(path) for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_killed_plannings_end_as_one_that_was_left_alone(make_project, projects):
    killed, whole = (make_project(n_labelled=2, n_unlabelled=2) for _ in range(2))
    longest = seconds(lambda: projects.finish(projects.start("plan", whole.plan_arguments())))

    def start(anew: bool) -> Any:
        if anew:
            shutil.rmtree(killed.prepared, ignore_errors=True)
        return projects.start("plan", killed.plan_arguments())

    last = kill_at_random(start, lambda: assert_whole(killed.prepared), longest, seed=1)
    assert projects.finish(last).code == 0
    assert projects.lasting_hashes(killed.prepared) == projects.lasting_hashes(whole.prepared)


def test_killed_trainings_end_as_one_that_was_left_alone(make_project, projects):
    killed, whole = (make_project(n_labelled=1, n_unlabelled=2) for _ in range(2))
    for project in (killed, whole):
        assert project.plan().code == 0
    iterations = 40
    done = whole.train_arguments("0", iterations=iterations)
    longest = seconds(lambda: projects.finish(projects.start("train", done)))
    fold = killed.model / "fold_0"

    def start(anew: bool) -> Any:
        how = "--overwrite" if anew and fold.exists() else "--c"
        arguments = killed.train_arguments("0", how, iterations=iterations)
        return projects.start("train", arguments, prelude=OFTEN)

    def check() -> None:
        if fold.exists():
            assert_whole(fold)
            load_latest(fold)

    answer = projects.finish(kill_at_random(start, check, longest, seed=2))
    assert answer.code == 0, answer.err
    name = "metrics.jsonl"
    assert (fold / name).read_bytes() == (whole.model / "fold_0" / name).read_bytes()
    kept, expected = (load_latest(project.model / "fold_0") for project in (killed, whole))
    assert kept is not None
    assert expected is not None
    assert kept.progress == expected.progress
    assert all(torch.equal(kept.networks[name], tensor) for name, tensor in expected.networks.items())


def test_killed_predictions_end_as_one_that_was_left_alone(make_project, projects, tmp_path):
    project = make_project(n_labelled=1, n_unlabelled=1, n_test=4)
    assert project.train("0").code == 0
    source = project.dataset / "imagesTs"
    options = ("--save_registration", "--save_probabilities")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    arguments = project.predict_arguments(source, alone, *options)
    longest = seconds(lambda: projects.finish(projects.start("predict", arguments)))

    def start(anew: bool) -> Any:
        more = () if anew else ("--continue_prediction",)
        return projects.start("predict", project.predict_arguments(source, killed, *options, *more))

    answer = projects.finish(kill_at_random(start, lambda: assert_whole(killed), longest, seed=3))
    assert answer.code == 0, answer.err
    assert projects.lasting_hashes(killed) == projects.lasting_hashes(alone)
