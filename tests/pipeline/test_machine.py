"""Machines that lack memory, shared memory or their GPU; and why no worker can be killed: there are none."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rrlsam.models.checkpoint import load_latest

QUICK = ("-f", "0", "--disable_tta", "--refine", "0")
WATCH = """
import sys
def watch(event, arguments):
    starts = event in ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "subprocess.Popen")
    if starts and "fc-list" not in str(arguments):  # matplotlib asks for fonts, once on a machine
        print(f"A CHILD: {event} {arguments}", file=sys.stderr)
sys.addaudithook(watch)
"""
"""Tells of every process that is started."""
LOSE_GPU = """
import torch
from rrlsam.data.batches import Batches
draw = Batches.draw
def lost(batches, stage, iteration, *given, **named):
    if (stage, iteration) == ("joint_reg_seg", 3):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\\nCUDA kernel errors might be ...")
    return draw(batches, stage, iteration, *given, **named)
Batches.draw = lost
from rrlsam.engine import fit
fit.SECONDS_BETWEEN_CHECKPOINTS = -1.0
"""


def little_memory(module: str, mb: int) -> str:
    """Import what a command needs; then its address space may not grow by more than so much."""
    return f"""
import resource, threading
import {module}, matplotlib.figure, torch, scipy.ndimage, nibabel
import rrlsam.pictures, rrlsam.evaluation.metrics, rrlsam.preprocessing.affine, rrlsam.trainers.one_shot
import outside_plugins, scipy.spatial, rrlsam.planners.one_shot
torch.nn.functional.conv3d(torch.ones(1, 1, 9, 9, 9), torch.ones(1, 1, 3, 3, 3))
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + ({mb} << 20),) * 2)
"""


def assert_refused(answer: Any, *codes: int) -> None:
    assert answer.code in codes, answer
    assert "Traceback" not in answer.err
    assert "memory" in answer.err.splitlines()[-1]
    assert answer.err.splitlines()[-1].startswith("rrlsam_")


@pytest.fixture(scope="module")
def large(make_project) -> Any:
    """Planned, but its scans need more memory than there will be."""
    project = make_project(n_labelled=1, n_unlabelled=1, n_test=1, size=(44, 48, 46))
    assert project.plan().code == 0
    return project


def test_planning_with_too_little_memory_is_refused_in_one_line(large, projects, tmp_path):
    fresh = projects.Project(tmp_path)
    shutil.copytree(large.folder / "raw", tmp_path / "raw")
    prelude = little_memory("rrlsam.planning.prepare", 3)
    answer = projects.finish(projects.start("plan", fresh.plan_arguments(), prelude=prelude))
    assert_refused(answer, 4)
    assert not [path for path in fresh.folder.rglob(".*") if path.name != ".rrlsam"]
    assert fresh.plan().code == 0


def test_training_with_too_little_memory_is_refused_and_goes_on_when_there_is_enough(large, projects):
    prelude = little_memory("rrlsam.training, rrlsam.planning.prepare", 3)
    answer = projects.finish(projects.start("train", large.train_arguments("0", iterations=1), prelude=prelude))
    assert_refused(answer, 4)
    assert large.train("0", "--c", iterations=1).code == 0


def test_predicting_with_too_little_memory_fails_in_one_line(trained, projects, tmp_path):
    prelude = little_memory("rrlsam.prediction.predict", 1)
    arguments = trained.predict_arguments(trained.dataset / "imagesTs", tmp_path, *QUICK)
    answer = projects.finish(projects.start("predict", arguments, prelude=prelude))
    assert_refused(answer, 4, 6)
    assert list(tmp_path.glob("*.nii.gz")) == []
    assert not [path for path in tmp_path.rglob(".tmp*")]


def test_a_training_that_loses_its_gpu_says_so_and_can_be_continued(make_project, projects):
    project = make_project(n_labelled=1, n_unlabelled=2)
    assert project.plan().code == 0
    answer = projects.finish(projects.start("train", project.train_arguments("0", iterations=5), prelude=LOSE_GPU))
    assert answer.code == 4, answer.err
    assert "Traceback" not in answer.err
    last = answer.err.splitlines()[-1]
    assert "the GPU answers no longer (CUDA error: unspecified launch failure)" in last
    assert "--c" in last
    kept = load_latest(project.model / "fold_0")
    assert kept is not None
    assert (kept.progress.stage, kept.progress.iteration) == ("joint_reg_seg", 3)
    assert project.train("0", "--c", iterations=5).code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["train", "predict", "register"])
def test_a_gpu_that_is_not_there_is_not_replaced_silently(trained, tmp_path, command):
    answer = {
        "train": lambda: trained.train("4", "-device", "cuda"),
        "predict": lambda: trained.predict(trained.dataset / "imagesTs", tmp_path / "out", *QUICK, "-device", "cuda"),
        "register": lambda: trained.register(
            "-i", trained.dataset / "imagesTs", "-o", tmp_path / "out", "-f", "0", "-device", "cuda"
        ),
    }[command]()
    assert answer.code == 4
    assert "-device cuda: no such device on this machine; use -device cpu" in answer.err
    assert not list(tmp_path.rglob("*.nii.gz"))
    assert not (trained.model / "fold_4").exists()


def in_small_shared_memory() -> list[str]:
    """What makes a command run where /dev/shm holds 1 MB; empty where mounting is not allowed."""
    inside = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        tried = subprocess.run([*inside, "df", "-k", "/dev/shm"], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return inside if tried.returncode == 0 and " 1024 " in tried.stdout else []


def test_all_commands_work_in_1_mb_of_shared_memory_and_start_no_process(make_project, projects):
    """No worker process means: none that the system could kill, none that waits for another."""
    inside = in_small_shared_memory()
    if not inside:
        pytest.skip("this user may not mount a small /dev/shm")
    project = make_project(n_labelled=2, n_unlabelled=1, n_test=2)
    work = {
        "plan": [*project.plan_arguments(), "-np", "2"],
        "train": project.train_arguments("0", iterations=1),
        "predict": project.predict_arguments(project.dataset / "imagesTs", project.folder / "out", *QUICK),
    }
    environment = {**os.environ, "PYTHONPATH": str(projects.OUTSIDE_PACKAGE), "MPLBACKEND": "agg"}
    for command, arguments in work.items():
        code = f"{WATCH}\nfrom rrlsam.cli import {command}\nsys.exit({command}.main(sys.argv[1:]))"
        done = subprocess.run(
            [*inside, sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "A CHILD" not in done.stderr


def test_a_planning_whose_worker_fails_ends(make_project, monkeypatch):
    """A worker is a thread: what ends it is told, and nobody waits for it."""
    project = make_project(n_labelled=2, n_unlabelled=2)

    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    with monkeypatch.context() as patched:
        patched.setattr("rrlsam.planning.prepare.preprocess_case", fail)
        answer = project.plan("-np", "2")
    assert answer.code == 4
    assert answer.err.splitlines()[-1].startswith("rrlsam_plan_and_preprocess: not enough memory (Unable to allocate")
    assert project.plan().code == 0


def test_a_killed_command_leaves_nothing_running(make_project, projects):
    project = make_project(n_labelled=1, n_unlabelled=8)
    prelude = "import os; os.setsid()\n" + SLOWLY.format(module="planning.prepare", function="preprocess_case")
    process = projects.start("plan", [*project.plan_arguments(), "-np", "2"], prelude=prelude)
    while process.poll() is None and not list(project.prepared.rglob("cases/*/*.b2nd")):
        time.sleep(0.01)
    assert _members(process.pid) == [process.pid]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert _members(process.pid) == []


def _members(group: int) -> list[int]:
    """The processes of a group."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _group(path) == group]


def _group(stat: Path) -> int:
    """The process group of a process that may be gone by now."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[2])
    except OSError:
        return -1


SLOWLY = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
import rrlsam.{module} as module
work = module.{function}
def slowly(*given, **named):
    time.sleep(1.0)
    return work(*given, **named)
module.{function} = slowly
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"])
@pytest.mark.parametrize("command", ["plan", "predict"])
def test_a_stopped_command_ends_soon_with_one_line_and_leaves_nothing_half_done(
    trained, make_project, projects, tmp_path, command, number, code
):
    if command == "plan":
        project = make_project(n_labelled=1, n_unlabelled=8)
        arguments, made = project.plan_arguments(), (project.prepared, "*/cases/*/*.b2nd")
        prelude = SLOWLY.format(module="planning.prepare", function="preprocess_case")
    else:
        for number_of_scan in range(8):
            scan = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
            shutil.copy(scan, tmp_path / f"scan{number_of_scan}_0000.nii.gz")
        arguments, made = (
            trained.predict_arguments(tmp_path, tmp_path / "out", *QUICK),
            (tmp_path / "out", "scan*.nii.gz"),
        )
        prelude = SLOWLY.format(module="prediction.predict", function="predict_scan")
    process = projects.start(command, arguments, prelude=prelude)
    while process.poll() is None and not list(made[0].glob(made[1])):
        time.sleep(0.01)
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=300)
    assert time.monotonic() - began < 10.0 * max(1.0, os.getloadavg()[0])
    assert process.returncode == code, err
    assert err.splitlines()[-1].endswith(("interrupted", "terminated"))
    assert "Traceback" not in err
    assert list(made[0].rglob(".tmp*")) == []
    assert 0 < len(list(made[0].glob(made[1]))) < 8


def test_few_open_files_are_enough_or_refused(make_project, projects):
    project = make_project(n_labelled=1, n_unlabelled=2)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    answer = projects.finish(projects.start("plan", project.plan_arguments(), prelude=limit))
    assert answer.code in (0, 4), answer.err
    assert "Traceback" not in answer.err
