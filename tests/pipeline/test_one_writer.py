"""Two commands that would write to one place at once."""

import os
import subprocess
import sys

from rrlsam.lock import sole_writer

PLAN = "import sys; from rrlsam.cli import plan; sys.exit(plan.main(sys.argv[1:]))"


def test_a_second_training_of_a_fold_is_refused_and_names_the_first(trained):
    before = (trained.model / "fold_0" / "checkpoint_latest.pt").read_bytes()
    for more in ([], ["--c"], ["--overwrite"]):
        with sole_writer(trained.model / "fold_0"):
            answer = trained.train("0", *more)
        assert answer.code == 4
        assert answer.err.count("\n") == 1
        assert f"fold_0: is being written by process {os.getpid()} on " in answer.err
    assert (trained.model / "fold_0" / "checkpoint_latest.pt").read_bytes() == before


def test_a_fold_that_is_being_written_can_be_read(trained, tmp_path):
    with sole_writer(trained.model / "fold_0"):
        assert trained.predict(trained.dataset / "imagesTs", tmp_path, "-f", "0").code == 0


def test_two_plannings_at_once_leave_what_one_leaves(make_project, outside_package, hashes_of):
    alone, together = (make_project(n_labelled=2, n_unlabelled=1) for _ in range(2))
    assert alone.plan().code == 0
    fixed = ["-d", "1", "-np", "1", "-pl", "outside_plugins:SmallPlanner", "--no_pbar"]
    command = [sys.executable, "-c", PLAN, *fixed, *together.roots("raw", "preprocessed")]
    environment = {**os.environ, "PYTHONPATH": str(outside_package)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert hashes_of(together.prepared) == hashes_of(alone.prepared)
