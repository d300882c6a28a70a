"""Two commands that would write to one place at once."""

import os

from rrlsam.system.lock import sole_writer


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


def test_two_plannings_at_once_leave_what_one_leaves(make_project, projects):
    alone, together = (make_project(n_labelled=2, n_unlabelled=1) for _ in range(2))
    assert alone.plan().code == 0
    both = [projects.start("plan", together.plan_arguments()) for _ in range(2)]
    answers = [projects.finish(process) for process in both]
    assert [answer.code for answer in answers] == [0, 0], answers
    assert projects.hashes(together.prepared) == projects.hashes(alone.prepared)
