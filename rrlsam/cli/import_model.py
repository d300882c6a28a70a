"""rrlsam_import: install a model file of rrlsam_export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import add_folder_options, make_parser, run, workspace_of


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_import", "Check a model file of rrlsam_export from all sides and install it among the results."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the file, MODEL.zip")
    parser.add_argument("--overwrite", action="store_true", help="replace a model of the same name")
    add_folder_options(parser, "results")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    workspace = workspace_of(arguments)
    workspace.root("results")

    from rrlsam.models.model_import import import_model

    done = import_model(arguments.model, workspace, overwrite=arguments.overwrite)
    manifest = done.manifest
    print(f"{done.folder}: fold {', '.join(manifest.training)}, licence: {manifest.licence}")
    for fold, summary in manifest.training.items():
        if summary.validation_dice is not None:
            cases = summary.validation_cases
            print(f"  fold {fold}: Dice {summary.validation_dice:.3f} on {cases} held-out cases, as the file says")
    print(f"rrlsam_predict -d {manifest.dataset} -tr {manifest.trainer} -p {manifest.plans} -i SCANS -o MASKS")
    return 0
