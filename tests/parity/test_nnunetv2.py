"""Our rules, files and findings beside those of nnunetv2 itself; left out where it isn't installed (`make parity`)."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.evaluation.evaluate import evaluate_folder, labels_from_file
from rrlsam.evaluation.summary import write_summary
from rrlsam.planning.folds import kfold_splits
from rrlsam.prediction.nnunet_export import export_dataset
from rrlsam.scans.dataset import load_dataset
from rrlsam.scans.integrity import check_dataset, require_sound

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.filterwarnings("default")
rules = importlib.import_module("rrlsam.planners.topology")


def nnunet(name: str) -> ModuleType:
    """A module of nnunetv2, imported late: some warn on import."""
    return importlib.import_module(f"nnunetv2.{name}")


@pytest.mark.parametrize("n_cases", [5, 6, 13, 100, 260])
def test_the_split_is_nnunets(n_cases):
    cases = tuple(f"case_{i:03d}" for i in range(n_cases))
    theirs = nnunet("utilities.crossval_split").generate_crossval_split(sorted(cases), seed=12345, n_splits=5)
    assert [sorted(fold["val"]) for fold in theirs] == [sorted(fold) for fold in kfold_splits(cases)]


@pytest.mark.parametrize("seed", range(40))
def test_patch_pools_and_kernels_are_nnunets(seed):
    random = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in random.choice([0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0], 3))
    patch = tuple(int(n) for n in random.integers(8, 300, 3))
    topology = nnunet("experiment_planning.experiment_planners.network_topology")
    _, strides, kernels, padded, _ = topology.get_pool_and_conv_props(list(spacing), list(patch), 4, 999999)
    ours = rules.topology(spacing, patch, max_levels=99)
    assert ours.patch == tuple(int(n) for n in padded)
    assert ours.strides == tuple(tuple(int(n) for n in stride) for stride in strides)
    assert ours.kernels == tuple(tuple(int(n) for n in kernel) for kernel in kernels)


@pytest.mark.parametrize("seed", range(20))
def test_the_target_spacing_is_nnunets(seed):
    random = np.random.default_rng(seed)
    coarse = int(random.integers(0, 3))
    spacings = random.uniform(0.6, 1.4, (9, 3))
    spacings[:, coarse] *= random.choice([1, 5, 8])
    shapes = random.integers(60, 200, (9, 3))
    shapes[:, coarse] //= random.choice([1, 8])
    planners = nnunet("experiment_planning.experiment_planners.default_experiment_planner")
    planner = object.__new__(planners.ExperimentPlanner)
    planner.dataset_fingerprint = {"spacings": spacings.tolist(), "shapes_after_crop": shapes.tolist()}
    planner.overwrite_target_spacing = None
    planner.anisotropy_threshold = 3
    theirs = planner.determine_fullres_target_spacing()
    ours = rules.target_spacing([tuple(s) for s in spacings.tolist()], [tuple(s) for s in shapes.tolist()])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def our_verdict(folder: Path) -> str:
    """ "sound", or what is wrong."""
    try:
        require_sound(check_dataset(load_dataset(folder), workers=1), folder.parents[1] / "report.json")
    except BadInputError as error:
        return str(error)
    return "sound"


def their_verdict(folder: Path) -> str:
    """The same, by nnU-Net's own check."""
    verify = nnunet("experiment_planning.verify_dataset_integrity").verify_dataset_integrity
    try:
        verify(str(folder), num_processes=1)
    except (AssertionError, RuntimeError, KeyError, FileNotFoundError) as error:
        return str(error) or "refused"
    return "sound"


@pytest.fixture
def labelled(make_dataset: Any, tmp_path: Path) -> Path:
    """A fully labelled data set, as nnU-Net needs it."""
    return make_dataset(tmp_path / "raw" / "Dataset001_Tiny", n_labelled=3, n_unlabelled=0)


@pytest.mark.parametrize("options", [{}, {"channels": 2}, {"regions": True}, {"ignore": True}, {"ending": ".nrrd"}])
def test_a_sound_data_set_is_sound_to_both_and_harmed_by_neither(make_dataset, projects, tmp_path, options):
    folder = make_dataset(tmp_path / "raw" / "Dataset001_Tiny", n_labelled=3, n_unlabelled=0, **options)
    before = projects.hashes(tmp_path / "raw")
    assert (our_verdict(folder), their_verdict(folder)) == ("sound", "sound")
    assert projects.hashes(tmp_path / "raw") == before


def test_unlabelled_scans_of_ours_do_not_disturb_nnunet(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "raw" / "Dataset001_Tiny", n_labelled=2, n_unlabelled=3)
    assert (our_verdict(folder), their_verdict(folder)) == ("sound", "sound")


def spoil_label_values(folder: Path, phantoms: Any) -> None:
    phantoms.write_volume(phantoms.phantom(0)[1] * 3, folder / "labelsTr" / "lab_00.nii.gz")


def spoil_label_spacing(folder: Path, phantoms: Any) -> None:
    phantoms.write_volume(phantoms.phantom(0)[1], folder / "labelsTr" / "lab_00.nii.gz", spacing=(1.1, 1.0, 1.0))


def spoil_label_shape(folder: Path, phantoms: Any) -> None:
    phantoms.write_volume(phantoms.phantom(0)[1][:-1], folder / "labelsTr" / "lab_00.nii.gz")


def spoil_count(folder: Path, phantoms: Any) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 7}))


def spoil_declaration(folder: Path, phantoms: Any) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": {"background": 0, "shell": 1, "core": 3}}))


@pytest.mark.parametrize(
    "spoil", [spoil_label_values, spoil_label_spacing, spoil_label_shape, spoil_count, spoil_declaration]
)
def test_what_nnunet_refuses_we_refuse(labelled, phantoms, spoil):
    spoil(labelled, phantoms)
    assert their_verdict(labelled) != "sound"
    assert our_verdict(labelled) != "sound"


def test_our_summary_is_read_by_nnunet_and_says_the_same(labelled, phantoms, tmp_path):
    for seed, case in enumerate(("lab_00", "lab_01", "lab_02")):
        phantoms.write_volume(phantoms.phantom(seed + 20)[1], tmp_path / "predicted" / f"{case}.nii.gz")
    labels = labels_from_file(labelled / "dataset.json")
    write_summary(
        evaluate_folder(labelled / "labelsTr", tmp_path / "predicted", labels, workers=1), tmp_path / "ours.json"
    )
    module = nnunet("evaluation.evaluate_predictions")
    reader = nnunet("imageio.simpleitk_reader_writer").SimpleITKIO()
    ours = module.load_summary_json(str(tmp_path / "ours.json"))
    for entry in ours["metric_per_case"]:
        files = (str(tmp_path / entry[which]) for which in ("reference_file", "prediction_file"))
        theirs = module.compute_metrics(*files, reader, [1, 2])
        for label in (1, 2):
            for key, value in theirs["metrics"][label].items():
                assert entry["metrics"][label][key] == pytest.approx(value)
    assert set(ours["foreground_mean"]) >= {"Dice", "IoU", "FP", "FN", "TP", "TN", "n_pred", "n_ref"}


def test_a_pseudo_labelled_data_set_is_sound_to_nnunet(make_dataset, phantoms, tmp_path):
    source = load_dataset(make_dataset(tmp_path / "raw" / "Dataset001_Tiny", n_labelled=1, n_unlabelled=3))
    for seed in range(3):
        phantoms.write_volume(phantoms.phantom(seed + 50)[1], tmp_path / "predicted" / f"un_{seed:02d}.nii.gz")
    folder = export_dataset(source, tmp_path / "predicted", tmp_path / "raw", 2, ("lab_00",)).folder
    assert their_verdict(folder) == "sound"
    assert sitk.ReadImage(str(folder / "labelsTr" / "un_02.nii.gz")).GetSize() == (22, 24, 20)
