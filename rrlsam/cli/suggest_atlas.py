"""rrlsam_suggest_atlas: which scan to label, before anyone has labelled anything."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import (
    add_progress_option,
    add_repair_options,
    count,
    make_parser,
    partial_failure,
    repairs_of,
    run,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_suggest_atlas",
        "Rank unlabelled scans by how well others are registered with them, to choose an atlas; no label is looked at.",
    )
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="scans, files CASE_0000.ENDING")
    parser.add_argument("-n", type=count, default=1, metavar="N", help="atlases that are to be labelled (default: 1)")
    parser.add_argument(
        "-o", type=Path, metavar="FOLDER", help="write suggestion.json and the contact sheet suggestion.png there"
    )
    add_repair_options(parser)
    add_progress_option(parser)
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.errors import UsageError
    from rrlsam.system.files import require_writable
    from rrlsam.system.safe_output import require_safe_folder

    files = [] if arguments.o is None else [arguments.o / f"suggestion.{ending}" for ending in ("json", "png")]
    for path in files:
        require_safe_folder(path.parent)
        if path.exists():
            raise UsageError(f"{path}: exists already; remove it or name another folder with -o")

    from rrlsam.cli.reporting import progress_of
    from rrlsam.planning.suggest import suggest_atlases
    from rrlsam.scans.inputs import find_inputs
    from rrlsam.system.jsonio import save_json

    scans = find_inputs(arguments.i, 1, repairs_of(arguments))
    if arguments.o is not None:
        require_writable(arguments.o)
    suggestion, pictures = suggest_atlases(scans, arguments.n, progress_of(arguments))
    print("rank  service  mean distance  scan")
    for candidate in suggestion.candidates:
        beside = "" if candidate.alignment == "affine" else "  (could not be aligned: look at it)"
        service = "" if candidate.service is None else f"{candidate.service:.3f}"
        print(f"{candidate.rank:4d}  {service:>7}  {candidate.distance:13.3f}  {candidate.case}{beside}")
    if files:
        from rrlsam.pictures import contact_sheet

        save_json(suggestion, files[0])
        named = [(f"{c.rank}. {c.case}", pictures[c.case]) for c in suggestion.candidates]
        contact_sheet(named, files[1])
    if suggestion.failures:
        reasons = [f"{case}: {reason}" for case, reason in suggestion.failures.items()]
        raise partial_failure(reasons, len(scans), "were left out")
    return 0
