"""A general encoder is distilled from folders of scans, and trainings start from it."""

import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from rrlsam.cli import distill
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.plan import DistillationKind
from rrlsam.settings import DISTILLATION_LOSSES
from rrlsam.system.files import sha256
from rrlsam.teacher.general_encoder import GeneralEncoder, load_general_encoder

FIXED = ["-device", "cpu", "--disable_progress_bar"]


@pytest.fixture(scope="module")
def planned(make_project) -> Any:
    project = make_project(n_labelled=1, n_unlabelled=2)
    assert project.plan().code == 0
    return project


@pytest.fixture(scope="module")
def made(planned, tiny_sam_checkpoint, tmp_path_factory) -> Path:
    """An encoder for the project's plan."""
    target = tmp_path_factory.mktemp("encoders") / "encoder.pt"
    (plan,) = planned.prepared.glob("rrlsamPlans/atlas_*/plan.json")
    folders = [str(planned.dataset / name) for name in ("imagesTr", "imagesUn")]
    options = ["--plan", str(plan), "--sam", str(tiny_sam_checkpoint), "--iterations", "30"]
    assert distill.main(["-i", *folders, "-o", str(target), *options, *FIXED]) == 0
    return target


def test_the_encoder_knows_where_it_comes_from(made, tiny_sam_checkpoint):
    provenance = load_general_encoder(made).provenance
    assert provenance.teacher == sha256(tiny_sam_checkpoint)
    assert (provenance.scans, provenance.iterations, provenance.loss) == (3, 30, "mse")


def test_nothing_but_the_encoder_is_left(made):
    assert [path.name for path in made.parent.iterdir()] == ["encoder.pt"]


def test_a_training_starts_from_the_encoder_and_keeps_it_without_a_teacher(planned, made):
    answer = planned.train("all", "--general_encoder", str(made), iterations=1)
    assert answer.code == 0, answer.err
    kept = load_checkpoint(planned.model / "fold_all" / "checkpoint_final.pt")
    assert kept.provenance.general_encoder == sha256(made)
    assert "distil_sam" not in kept.progress.finished
    encoder: GeneralEncoder = load_general_encoder(made)
    for name, tensor in encoder.projection.items():  # nothing has trained this part, so that it is still the file's
        assert torch.equal(kept.networks[f"feature_projection.{name}"], tensor)
    assert planned.train("all", "--general_encoder", str(made), "--c", iterations=1).code == 0


def test_scans_alone_are_enough_and_a_bad_one_is_left_out(
    phantoms, outside_package, tiny_sam_checkpoint, tmp_path, capsys
):
    for seed in range(2):
        image, _ = phantoms.phantom(seed)
        phantoms.write_volume(image[0], tmp_path / "scans" / f"a_{seed}_0000.nii.gz", spacing=(1.0, 1.0, 1.5))
    (tmp_path / "scans" / "bad_0000.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    options = ["-pl", "outside_plugins:SmallPlanner", "--sam", str(tiny_sam_checkpoint), "--loss", "cosine"]
    target = tmp_path / "encoder.pt"
    code = distill.main(["-i", str(tmp_path / "scans"), "-o", str(target), "--iterations", "20", *options, *FIXED])
    output = capsys.readouterr()
    assert code == 6
    assert "1 of 3 scans were left out: 0_bad" in output.err
    first, last = (float(word.strip(",")) for word in output.out.split() if word[0].isdigit() and "." in word)
    assert last < first
    assert load_general_encoder(target).provenance.loss == "cosine"


def test_an_existing_file_is_not_replaced_unasked(made, planned):
    before = made.read_bytes()
    assert distill.main(["-i", str(planned.dataset / "imagesTr"), "-o", str(made), *FIXED]) == 2
    assert made.read_bytes() == before


def test_an_encoder_is_not_written_among_the_scans_or_over_the_weights(planned, tmp_path, capsys):
    scans, weights = tmp_path / "scans", tmp_path / "sam.pth"
    scans.mkdir()
    weights.write_bytes(b"mine")
    assert distill.main(["-i", str(scans), "-o", str(scans / "e.pt"), "--overwrite", *FIXED]) == 2
    assert "is the folder of the scans" in capsys.readouterr().err
    given = ["-i", str(scans), "-o", str(weights), "--sam", str(weights), "--overwrite"]
    assert distill.main([*given, *FIXED]) == 2
    assert "would replace what is read" in capsys.readouterr().err
    assert weights.read_bytes() == b"mine"


def test_a_folder_of_somebody_else_is_not_taken_for_working(planned, tmp_path, capsys):
    (tmp_path / "e.pt.work").mkdir()
    (tmp_path / "e.pt.work" / "mine.txt").write_text("mine")
    assert distill.main(["-i", str(planned.dataset / "imagesTr"), "-o", str(tmp_path / "e.pt"), *FIXED]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "e.pt.work" / "mine.txt").read_text() == "mine"


def test_without_a_teacher_there_is_nothing_to_distil(planned, tmp_path, capsys):
    arguments = ["-i", str(planned.dataset / "imagesTr"), "-o", str(tmp_path / "e.pt"), "--sam", "none"]
    assert distill.main([*arguments, *FIXED]) == 2
    assert "without a teacher there is nothing to distil" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_losses_that_can_be_asked_for_are_the_plans():
    assert typing.get_args(DistillationKind) == DISTILLATION_LOSSES
