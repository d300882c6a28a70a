"""rrlsam_doctor: what this machine has and lacks, one line each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import add_folder_options, make_parser, run, workspace_of
from rrlsam.errors import ResourceError


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_doctor",
        "Look at versions, devices, memory, disk, folders and SAM's weights; say what is wrong and how to mend it. "
        "The exit code is 4 if anything needed is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_folder_options(parser, "raw", "preprocessed", "results")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.doctor import OK, WRONG, Check, examine

    checks: list[Check] = []
    for check in examine(workspace_of(arguments), os.environ, Path.home()):
        checks.append(check)
        if not arguments.json:
            remedy = f"; {check.remedy}" if check.status != OK else ""
            print(f"{check.status:8s} {check.name}: {check.found}{remedy}", flush=True)
    wrong = [check for check in checks if check.status == WRONG]
    if arguments.json:
        report = {"wrong": len(wrong), "checks": [dataclasses.asdict(check) for check in checks]}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    if wrong:
        names = ", ".join(check.name for check in wrong)
        raise ResourceError(f"wrong: {names}; mend what the report says")
    return 0
