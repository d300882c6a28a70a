"""Disks that are full or cannot be written, names that are odd, readers that go away."""

import shutil
from pathlib import Path

import pytest

QUICK = ("-f", "0", "--disable_tta", "--refine", "0")
ODD = "a b'c\"ü患者😀[1]%s$x$"


def assert_refused(answer, code: int = 4) -> None:
    assert answer.code == code, answer
    assert "Traceback" not in answer.err
    assert answer.err.splitlines()[-1].startswith("rrlsam_")


def no_left_overs(folder: Path) -> bool:
    return not [path for path in folder.rglob(".*") if path.name != ".rrlsam"]


def test_planning_on_a_full_disk_stops_and_goes_on_when_there_is_room(make_project, projects):
    """E3, E4: what was finished before is not made again."""
    full, whole = (make_project(n_labelled=1, n_unlabelled=1) for _ in range(2))
    assert whole.plan().code == 0
    assert_refused(projects.finish(projects.start("plan", full.plan_arguments(), largest_file=15_000)))
    assert no_left_overs(full.prepared)
    made = projects.hashes(full.prepared)
    assert made
    assert made.items() <= projects.hashes(whole.prepared).items()
    assert full.plan().code == 0
    assert projects.hashes(full.prepared) == projects.hashes(whole.prepared)


def test_training_on_a_full_disk_stops_and_goes_on_when_there_is_room(make_project, projects):
    project = make_project(n_labelled=1, n_unlabelled=1)
    assert project.plan().code == 0
    assert_refused(projects.finish(projects.start("train", project.train_arguments("0"), largest_file=20_000)))
    fold = project.model / "fold_0"
    assert no_left_overs(fold)
    assert not list(fold.glob("*.pt"))
    assert project.train("0", "--c").code == 0


@pytest.mark.parametrize("largest_file", [100, 2000])
def test_predicting_on_a_full_disk_leaves_no_broken_mask_and_no_harm_to_those_that_are_there(
    trained, projects, tmp_path, largest_file
):
    """E1: the masks there are of another setting, so that they would all be replaced."""
    options = (trained.dataset / "imagesTs", tmp_path, *QUICK, "--save_probabilities")
    assert trained.predict(*options).code == 0
    arguments = trained.predict_arguments(*options)
    before = projects.hashes(tmp_path)
    answer = projects.finish(projects.start("predict", [*arguments, "-step_size", "1"], largest_file=largest_file))
    assert answer.code in (4, 6)
    assert_refused(answer, answer.code)
    assert no_left_overs(tmp_path)
    kept = projects.hashes(tmp_path)
    for name, content in before.items():
        if name.endswith((".nii.gz", ".npz")):
            assert kept[name] == content


@pytest.mark.parametrize("command", ["plan", "train", "predict", "train without preprocessed"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(trained, tmp_path, command):
    """E6. Even an administrator makes no folder there."""
    refusing = "/proc/rrlsam"
    answer = {
        "plan": lambda: trained.plan("--preprocessed", refusing),
        "train": lambda: trained.train("0", "--results", refusing),
        "train without preprocessed": lambda: trained.train("4", "--preprocessed", refusing),
        "predict": lambda: trained.predict(trained.dataset / "imagesTs", Path(refusing) / "out", *QUICK),
    }[command]()
    assert_refused(answer)
    assert f"{refusing}" in answer.err
    assert "cannot be written" in answer.err
    assert answer.err.count("\n") == 1
    assert not (trained.model / "fold_4").exists()


def test_a_file_in_the_place_of_the_output_folder_is_refused(trained, tmp_path):
    (tmp_path / "out").touch()
    answer = trained.predict(trained.dataset / "imagesTs", tmp_path / "out", *QUICK)
    assert_refused(answer)
    assert f"{tmp_path / 'out'}: cannot be written" in answer.err


def test_a_registration_replaces_no_atlas_of_the_users(trained, projects, tmp_path):
    (tmp_path / "atlas.nii.gz").write_bytes(b"years of work")
    answer = trained.register("-i", trained.dataset / "imagesTs", "-o", tmp_path, "-f", "0")
    assert_refused(answer, 2)
    assert "atlas.nii.gz is not of a registration; give a folder of its own" in answer.err
    assert (tmp_path / "atlas.nii.gz").read_bytes() == b"years of work"


def test_odd_names_of_folders_and_cases_do_no_harm(make_project, projects, tmp_path):
    """E9."""
    plain = make_project(n_labelled=2, n_unlabelled=1, n_test=1)
    project = projects.Project(tmp_path / f"-{ODD}")
    shutil.copytree(plain.folder, project.folder)
    scan = project.dataset / "imagesTs" / "test_00_0000.nii.gz"
    scan.rename(scan.with_name(f"{ODD}_0000.nii.gz"))
    for part in ("imagesUn/un_00_0000.nii.gz", "imagesTr/lab_01_0000.nii.gz", "labelsTr/lab_01.nii.gz"):
        path = project.dataset / part
        path.rename(path.with_name(path.name.replace("lab_01", f"L{ODD}").replace("un_00", f"U{ODD}")))
    assert project.plan("--atlas", f"L{ODD}").code == 0
    answer = project.train("0", "--atlas", f"L{ODD}", iterations=1)
    assert answer.code == 0, answer.err
    answer = project.predict(project.dataset / "imagesTs", project.folder / f"out {ODD}", *QUICK)
    assert answer.code == 0, answer.err
    assert (project.folder / f"out {ODD}" / f"{ODD}.nii.gz").is_file()


def test_nobody_need_read_what_a_command_says(trained, projects, tmp_path):
    """E15: the reader of both streams goes away before the first word, as `head` may."""
    process = projects.start("predict", trained.predict_arguments(trained.dataset / "imagesTs", tmp_path, *QUICK))
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert len(list(tmp_path.glob("*.nii.gz"))) == 2
