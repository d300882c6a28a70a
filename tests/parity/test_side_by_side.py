"""nnU-Net's own commands on the folders that ours work on, in either order; left out where nnunetv2 isn't installed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rrlsam.prediction.nnunet_export import export_dataset
from rrlsam.scans.dataset import load_dataset

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.filterwarnings("default")

PLAN = """
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
plan_and_preprocess_entry()
"""
TRAIN = """
import json, os, sys, torch
from pathlib import Path
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_1epoch
torch.set_num_threads(1)
folder = Path(os.environ["nnUNet_preprocessed"], sys.argv[1])
plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
plans["continue_training"] = False  # which its command puts there
trainer = nnUNetTrainer_1epoch(plans, "3d_fullres", "all", dataset, device=torch.device("cpu"))
trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 1
trainer.run_training()
"""


def nnunet(folder: Path, code: str, *arguments: str, loaders: int = 1) -> None:
    """Run something of nnU-Net's as its commands do, with the roots that lie in a folder."""
    roots = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    few = {"nnUNet_n_proc_DA": str(loaders), "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **roots, **few, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def plan_theirs(project: Any) -> None:
    """nnUNetv2_plan_and_preprocess --verify_dataset_integrity."""
    fixed = ["-c", "3d_fullres", "-np", "1", "-npfp", "1", "--verify_dataset_integrity"]
    nnunet(project.folder, PLAN, "-d", "1", *fixed)


def plan_ours(project: Any) -> None:
    answer = project.plan("--verify_dataset_integrity", "-c", "3d_fullres")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(("first", "second"), [(plan_theirs, plan_ours), (plan_ours, plan_theirs)])
def test_both_prepare_one_raw_data_set_and_harm_neither_it_nor_each_other(make_project, projects, first, second):
    project = make_project(n_labelled=3, n_unlabelled=2)
    raw = projects.hashes(project.folder / "raw")
    first(project)
    before = projects.hashes(project.folder / "preprocessed")
    second(project)
    after = projects.hashes(project.folder / "preprocessed")
    assert projects.hashes(project.folder / "raw") == raw
    assert {name: after.get(name) for name in before} == before
    names = {Path(name).relative_to(project.dataset.name).parts[0] for name in after}
    assert "nnUNetPlans.json" in names
    assert "rrlsam" in names
    ours = {name for name in after if f"{project.dataset.name}/rrlsam/" in name}
    assert any(name.endswith("plan.json") for name in ours)
    first(project)
    again = projects.hashes(project.folder / "preprocessed")
    assert {name: again[name] for name in ours} == {name: after[name] for name in ours}


def test_stock_nnunet_trains_on_an_exported_data_set(make_project, phantoms):
    """Its trainer by class: its look-up by name imports trainers that need torchvision."""
    project = make_project(n_labelled=1, n_unlabelled=3, n_test=1)
    predicted = project.folder / "predicted"
    for seed in range(3):
        phantoms.write_volume(phantoms.phantom(100 + seed)[1], predicted / f"un_{seed:02d}.nii.gz")
    made = export_dataset(load_dataset(project.dataset), predicted, project.folder / "raw", 7, ("lab_00",)).folder
    fixed = ["-c", "3d_fullres", "-np", "1", "-npfp", "1", "--verify_dataset_integrity"]
    nnunet(project.folder, PLAN, "-d", "7", *fixed)
    nnunet(project.folder, TRAIN, made.name, loaders=0)
    model = project.folder / "results" / made.name / "nnUNetTrainer_1epoch__nnUNetPlans__3d_fullres"
    assert (model / "fold_all" / "checkpoint_final.pth").is_file()
