"""rrlsam_convert_dataset: other people's data sets into nnU-Net's raw layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrlsam.cli.common import (
    Parser,
    add_folder_options,
    add_progress_option,
    count,
    make_parser,
    partial_failure,
    run,
    workers,
    workspace_of,
)
from rrlsam.errors import UsageError

if TYPE_CHECKING:
    from rrlsam.convert.source import Source

_OWN_OPTIONS = {
    "oasis": ("structures", "image", "labels"),
    "lung_ct": (
        "masks",
        "image_suffix",
        "mask_suffix",
        "left_suffix",
        "right_suffix",
        "left_values",
        "right_values",
        "one_lung",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    return run(_work, _parser(), argv)


def _parser() -> Parser:
    parser = make_parser(
        "rrlsam_convert_dataset",
        "Make a data set in nnU-Net's raw layout: oasis, a folder a subject as Neurite distributes OASIS or as "
        "FreeSurfer leaves it; or lung_ct, CT scans with masks of the lungs.",
    )
    parser.add_argument("format", choices=tuple(_OWN_OPTIONS), metavar="FORMAT", help=" or ".join(_OWN_OPTIONS))
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="what is to be converted; only read")
    parser.add_argument("-d", type=count, required=True, metavar="NUMBER", help="number of the new data set")
    parser.add_argument("--name", required=True, help="its name, as in DatasetNUMBER_NAME")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote")
    parser.add_argument("-np", type=workers, metavar="N", help="parallel workers (default: usable cores)")
    add_progress_option(parser)
    add_folder_options(parser, "raw")
    oasis = parser.add_argument_group("oasis")
    oasis.add_argument(
        "--structures", choices=("paper", "all"), help="the paper's 13 structures, or all (default: paper)"
    )
    oasis.add_argument(
        "--image", metavar="FILE", help="the scan's name in every folder (default: aligned_norm.nii.gz, else norm.*)"
    )
    oasis.add_argument(
        "--labels", metavar="FILE", help="the label map's name (default: aligned_seg35.nii.gz, else seg35.*, aseg.*)"
    )
    lung = parser.add_argument_group("lung_ct")
    lung.add_argument("--masks", type=Path, metavar="FOLDER", help="folder of the masks (default: beside the scans)")
    lung.add_argument("--image_suffix", metavar="TEXT", help="end of the scans' names, left out of the case's")
    lung.add_argument(
        "--mask_suffix",
        metavar="TEXT",
        help="what a mask's name has after the case's (default: _mask; in a folder of their own nothing)",
    )
    lung.add_argument("--left_suffix", metavar="TEXT", help="the same for a mask of the left lung alone")
    lung.add_argument("--right_suffix", metavar="TEXT", help="the same for one of the right lung")
    lung.add_argument(
        "--left_values", type=count, nargs="+", metavar="N", help="values of the left lung in a mask of both"
    )
    lung.add_argument("--right_values", type=count, nargs="+", metavar="N", help="those of the right lung")
    lung.add_argument("--one_lung", action="store_true", default=None, help="do not tell left from right")
    return parser


def _work(arguments: argparse.Namespace) -> int:
    for name, options in _OWN_OPTIONS.items():
        given = [option for option in options if getattr(arguments, option) is not None]
        if given and name != arguments.format:
            raise UsageError(f"--{given[0]} is for {name}, not for {arguments.format}")

    from rrlsam.cli.reporting import progress_of
    from rrlsam.convert.write import claim_folder, write_dataset

    raw = workspace_of(arguments).root("raw")
    sources = [path for path in (arguments.i, arguments.masks) if path is not None]
    folder = claim_folder(raw, arguments.d, arguments.name, overwrite=arguments.overwrite, sources=sources)
    source = _source(arguments)
    made = write_dataset(source, folder, workers=arguments.np, progress=progress_of(arguments))
    sys.stdout.write(
        f"{folder}: {made.labelled} labelled and {made.unlabelled} unlabelled scans, "
        f"{len(made.structures)} structures: {', '.join(made.structures)}\n"
    )
    if made.failures:
        total = made.labelled + made.unlabelled + len(made.failures)
        raise partial_failure(list(made.failures.values()), total, "were left out")
    return 0


def _source(arguments: argparse.Namespace) -> Source:
    from rrlsam.convert.lung_ct import LungOptions, lung_ct
    from rrlsam.convert.oasis import OasisOptions, oasis

    given = {option: getattr(arguments, option) for option in _OWN_OPTIONS[arguments.format]}
    chosen: dict[str, Any] = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in given.items()
        if value is not None
    }
    if arguments.format == "lung_ct":
        return lung_ct(arguments.i, LungOptions(**chosen))
    return oasis(arguments.i, OasisOptions(**chosen))
