"""rrlsam_export_nnunet_dataset: predicted masks as labels of a new raw data set for nnU-Net."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import add_folder_options, atlas_names, count, make_parser, run, workspace_of
from rrlsam.errors import UsageError, listed

FEWEST_FOR_FIVE_FOLDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_export_nnunet_dataset",
        "Write the scans whose labels were learnt from, with these labels, and the predicted scans, with their masks, "
        "as a new raw data set, on which stock nnU-Net trains.",
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="the data set of the scans, number or name")
    parser.add_argument("-i", type=Path, required=True, metavar="PREDICTIONS", help="output folder of rrlsam_predict")
    parser.add_argument("-o", type=Path, required=True, metavar="RAW_ROOT", help="folder for the new DatasetNNN_Name")
    parser.add_argument("--id", type=count, required=True, metavar="NNN", help="number of the new data set, 1 to 999")
    parser.add_argument(
        "--least_confidence",
        type=_share,
        metavar="X",
        help="leave out scans whose predicted Dice (mean over structures, of report.json) is below X",
    )
    parser.add_argument(
        "--atlas", metavar="CASE[,CASE]", help="the cases with true labels (default: those that the model learnt from)"
    )
    add_folder_options(parser, "raw", "results")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.prediction.nnunet_export import PROVENANCE, export_dataset, find_atlases
    from rrlsam.scans.dataset import HIGHEST_NUMBER, find_dataset, load_dataset

    if arguments.id > HIGHEST_NUMBER:
        raise UsageError(f"--id {arguments.id}: nnU-Net's numbers end at {HIGHEST_NUMBER}")
    workspace = workspace_of(arguments)
    dataset = load_dataset(find_dataset(workspace.root("raw"), arguments.d))
    atlases = atlas_names(arguments.atlas) or find_atlases(dataset, workspace.roots["results"])
    written = export_dataset(
        dataset, arguments.i, arguments.o, arguments.id, atlases, least_confidence=arguments.least_confidence
    )
    told = written.provenance
    n_cases = len(told.true_labels) + len(told.pseudo_labels)
    print(f"{written.folder}: {len(told.true_labels)} true and {len(told.pseudo_labels)} predicted labels")
    if told.left_out:
        print(f"left out, not confident enough: {len(told.left_out)}, listed in {PROVENANCE}")
    if told.not_predicted:
        print(f"not predicted: {listed(told.not_predicted)}")
    if n_cases < FEWEST_FOR_FIVE_FOLDS:
        print(f"With {n_cases} cases nnU-Net cannot make five folds; train its fold all.")
    print("Most labels are predictions: a Dice on them says how well they are imitated, not how right they are.")
    return 0


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
