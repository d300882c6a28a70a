"""rrlsam_evaluate: compare predicted masks with the truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import (
    Parser,
    add_folder_options,
    add_progress_option,
    count,
    make_parser,
    positive,
    run,
    workers,
    workspace_of,
)
from rrlsam.errors import UsageError, listed
from rrlsam.system.files import require_writable
from rrlsam.system.safe_output import require_safe_file

if TYPE_CHECKING:
    from rrlsam.labels import LabelScheme


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run(_work, _parser(), argv)


def _parser() -> Parser:
    parser = make_parser(
        "rrlsam_evaluate",
        "Compare the masks in a folder with those of the same case names in another: Dice, IoU, HD95, NSD, volumes. "
        "Writes nnU-Net's summary.json and a CSV, and prints a table.",
    )
    parser.add_argument("reference", type=Path, help="folder of true masks")
    parser.add_argument("prediction", type=Path, help="folder of predicted masks")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-djfile", type=Path, metavar="FILE", help="dataset.json that names the labels")
    source.add_argument("-d", metavar="DATASET", help="take dataset.json from this data set: number, name or folder")
    source.add_argument("-l", type=count, nargs="+", metavar="LABEL", help="label values, instead of a dataset.json")
    add_folder_options(parser, "raw")
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: summary.json in the folder of predictions")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="default: beside the summary, ending in .csv")
    parser.add_argument(
        "--tolerance_mm", type=positive, default=1.0, metavar="MM", help="tolerance of NSD (default: 1.0)"
    )
    parser.add_argument("--chill", action="store_true", help="skip cases that have no prediction")
    parser.add_argument(
        "--allow_geometry_mismatch",
        action="store_true",
        help="compare masks of one size that lie in different places voxel by voxel, instead of refusing",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are no earlier summary of ours")
    parser.add_argument("-np", type=workers, default=2, metavar="N", help="cases at a time (default: 2)")
    add_progress_option(parser)
    return parser


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.cli.reporting import progress_of
    from rrlsam.evaluation.evaluate import evaluate_folder
    from rrlsam.evaluation.summary import is_csv, is_summary, table, write_csv, write_summary

    output = arguments.o or arguments.prediction / "summary.json"
    rows = arguments.csv or output.with_suffix(".csv")
    for path, option, ending, ours in ((output, "-o", ".json", is_summary), (rows, "--csv", ".csv", is_csv)):
        _require_report(path, ending, option, arguments.djfile)
        if path.exists() and not arguments.overwrite and not ours(path):
            raise UsageError(f"{option} {path}: is there and of something else; give another name, or --overwrite")
    labels = _labels(arguments)
    if arguments.prediction.is_dir():  # where there is none, none is to be made
        for path in (output, rows):
            require_writable(path.parent)
    evaluation = evaluate_folder(
        arguments.reference,
        arguments.prediction,
        labels,
        workers=arguments.np,
        tolerance_mm=arguments.tolerance_mm,
        allow_missing=arguments.chill,
        allow_geometry_mismatch=arguments.allow_geometry_mismatch,
        progress=progress_of(arguments),
    )
    write_summary(evaluation, output)
    write_csv(evaluation, rows)
    lines = [table({"prediction": evaluation}), f"{len(evaluation.cases)} cases; written to {output}"]
    if evaluation.without_prediction:
        lines.append(f"skipped, no prediction: {listed(evaluation.without_prediction)}")
    if evaluation.without_reference:
        lines.append(f"skipped, no reference: {listed(evaluation.without_reference)}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _require_report(path: Path, ending: str, option: str, labels: Path | None) -> None:
    """UsageError where a report would take the place of a scan or of what is read."""
    if path.suffix != ending or path.name == "dataset.json":
        raise UsageError(f"{option} {path}: must end in {ending} and not be dataset.json; give another name")
    require_safe_file(path, (labels,), option)


def _labels(arguments: argparse.Namespace) -> LabelScheme:
    from rrlsam.evaluation.evaluate import labels_from_file, labels_from_ints

    if arguments.l:
        return labels_from_ints(arguments.l)
    if arguments.djfile:
        return labels_from_file(arguments.djfile)
    if arguments.d:
        return labels_from_file(_dataset_folder(arguments) / "dataset.json")
    for folder in (arguments.prediction, arguments.reference / ".."):
        if (folder / "dataset.json").is_file():
            return labels_from_file(folder / "dataset.json")
    raise UsageError(
        f"no dataset.json in {arguments.prediction} or beside {arguments.reference}; "
        "name one by -djfile or -d, or give the label values by -l"
    )


def _dataset_folder(arguments: argparse.Namespace) -> Path:
    from rrlsam.scans.dataset import find_dataset

    if (Path(arguments.d) / "dataset.json").is_file():
        return Path(arguments.d)
    return find_dataset(workspace_of(arguments).root("raw"), arguments.d)
