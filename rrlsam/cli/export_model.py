"""rrlsam_export: a trained model as one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import make_parser, plain_text, run
from rrlsam.cli.model_options import add_model_options, chosen_model
from rrlsam.errors import UsageError
from rrlsam.system.safe_output import require_safe_file


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_export",
        "Write a trained model into one file that rrlsam_import reads: no pickle, a sum for each member.",
    )
    add_model_options(parser)
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds to export (default: all that are trained)")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="the file to write, ending in .zip")
    parser.add_argument(
        "--licence", type=plain_text, default="not stated", metavar="TEXT", help="under what terms others may use it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.o.suffix != ".zip":
        raise UsageError(f"{arguments.o}: a model file must end in .zip")
    require_safe_file(arguments.o, (), overwrite=arguments.overwrite)
    model = chosen_model(arguments)

    from rrlsam.models.model_file import export_model

    folds = None if arguments.f is None else tuple(arguments.f)
    manifest = export_model(model, folds, arguments.o, licence=arguments.licence)
    cases = max(summary.training_cases for summary in manifest.training.values())
    size = arguments.o.stat().st_size
    print(f"{arguments.o}: fold {', '.join(manifest.training)} of {manifest.dataset}, {size:,} bytes")
    print(f"It holds the atlas (image and label) and the names of {cases} training cases: share it only if you may.")
    return 0
