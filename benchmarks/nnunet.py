"""nnU-Net trained on the one label: its own planner, network and trainer, with one labelled scan and nothing else.

    python benchmarks/nnunet.py -d 4 --fold 0 --atlas CASE CASE --raw RAW --work WORK [--epochs N] [--steps N] [--test]

Runs on a GPU if there is one. nnU-Net makes 1000 epochs of 250 steps; the learning rate falls over the epochs that are
asked for, so fewer are a whole training too. Writes WORK/DATASET_nnunet.json and appends a row an atlas
to results/one_shot.md. Needs nnunetv2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import link_files, score, test_scans
from rows import Row, data_name, make_row, write_rows

from rrlsam.planning.folds import kfold_splits
from rrlsam.scans.dataset import Dataset, Scan, find_dataset, load_dataset

NUMBER = 999
"""Of the data set of one scan that nnU-Net is given."""
CONFIGURATION = "3d_fullres"
RAW, PREPROCESSED, RESULTS = "raw", "preprocessed", "results"


def main() -> None:
    """Train and score with each atlas in turn."""
    arguments = _parse()
    dataset = load_dataset(find_dataset(arguments.raw, arguments.d))
    rows = [_of_atlas(dataset, arguments, atlas) for atlas in arguments.atlas]
    settings = {"epochs": arguments.epochs, "steps": arguments.steps, "device": _device().type}
    write_rows(rows, data_name(dataset, arguments), arguments.work / f"{dataset.name}_nnunet.json", settings)


def _of_atlas(dataset: Dataset, arguments: argparse.Namespace, atlas: str) -> Row:
    scans = test_scans(dataset) if arguments.test else _held_out(dataset, arguments.fold, atlas)
    folder = arguments.work / "nnunet" / dataset.name / atlas
    for name in (RAW, PREPROCESSED, RESULTS):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    _write_raw(dataset, dataset.scan(atlas), folder / RAW / f"Dataset{NUMBER}_OneLabel")
    began = time.monotonic()
    trained = _train(arguments.epochs, arguments.steps)
    note = f"{arguments.epochs} epochs of {arguments.steps} steps on {_device().type}"
    note += f", plan and train {time.monotonic() - began:.0f} s"
    began = time.monotonic()
    masks = _predict(trained, scans, folder / "predictions", dataset.file_ending)
    seconds = time.monotonic() - began
    scores = score(scans, masks, dataset)
    made = make_row("nnU-Net, the same label", scores, arguments.without, seconds=seconds, note=note)
    return made | {"learnt_from": f"atlas {atlas}"}


def _held_out(dataset: Dataset, fold: int, atlas: str) -> list[Scan]:
    return [dataset.scan(case) for case in kfold_splits(dataset.labelled)[fold] if case != atlas]


def _write_raw(dataset: Dataset, scan: Scan, folder: Path) -> None:
    """A raw data set of the labelled scan alone."""
    link_files(scan.images, folder / "imagesTr")
    link_files([dataset.label_of(scan.case)], folder / "labelsTr")
    described = json.loads((dataset.folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(described | {"numTraining": 1}))


def _train(epochs: int, steps: int) -> Path:
    """Plan, preprocess and train as nnU-Net's commands do; the folder of the model."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.run.run_training import get_trainer_from_args

    api.extract_fingerprints([NUMBER], num_processes=1)
    api.plan_experiments([NUMBER])
    api.preprocess([NUMBER], configurations=[CONFIGURATION], num_processes=[1])
    trainer = get_trainer_from_args(str(NUMBER), CONFIGURATION, "all", device=_device())
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, steps
    trainer.num_val_iterations_per_epoch = math.ceil(steps / 5)  # 50 beside 250, as nnU-Net has
    trainer.run_training()
    return Path(trainer.output_folder_base)


def _predict(model: Path, scans: Sequence[Scan], output: Path, ending: str) -> Path:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir(exist_ok=True)
    predictor = nnUNetPredictor(perform_everything_on_device=_device().type == "cuda", device=_device())
    predictor.initialize_from_trained_model_folder(str(model), use_folds=("all",))
    images = [[str(path) for path in scan.images] for scan in scans]
    masks = [str(output / f"{scan.case}{ending}") for scan in scans]
    predictor.predict_from_files(images, masks, num_processes_preprocessing=1, num_processes_segmentation_export=1)
    return output


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="number or name of the data set")
    parser.add_argument("--fold", type=int, default=0, help="held-out cases are scored")
    parser.add_argument("--atlas", nargs="+", required=True, help="labelled scans, each in turn")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=250, help="an epoch")
    parser.add_argument("--test", action="store_true", help="score imagesTs against labelsTs, not the held-out cases")
    parser.add_argument("--without", nargs="*", default=[], help="structures left out of the second Dice column")
    return parser.parse_args()


if __name__ == "__main__":
    main()
