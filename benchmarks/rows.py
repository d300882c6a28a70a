"""Rows of results/one_shot.md: what was scored, how well, by what method, on which machine."""

from __future__ import annotations

import argparse
import datetime
import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import RESULTS, hardware, summary, versions

from rrlsam.evaluation.summary import Evaluation
from rrlsam.scans.dataset import Dataset

TABLE = RESULTS / "one_shot.md"
Row = dict[str, object]


def make_row(
    method: str, scores: Evaluation, without: Sequence[str], *, seconds: float, note: str, folds: float | None = None
) -> Row:
    """One method's scores. `without`: structures left out of the second Dice; `seconds`: of all scans together."""
    found = summary(scores, without)
    if found["lost"]:
        note += f"; HD95 leaves out {found['lost']} lost structures"
    return {
        "method": method,
        "cases": len(scores.cases),
        **found,
        "fold_percent": folds,
        "seconds_a_scan": seconds / len(scores.cases),
        "note": note,
    }


def data_name(dataset: Dataset, arguments: argparse.Namespace) -> str:
    """Data set and which part of it is scored, by a benchmark's options --test and --fold."""
    return f"{dataset.name} {'test' if arguments.test else f'fold {arguments.fold}'}"


def write_rows(rows: Sequence[Row], data: str, file: Path, settings: Mapping[str, object]) -> None:
    """Append to the table, and write all that is known of the rows to a JSON file. `data`: data set and part."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    date, machine = datetime.date.today().isoformat(), hardware()
    run = {"date": date, "hardware": machine, "versions": versions(), "peak_memory_gib": peak, **settings}
    file.write_text(json.dumps(run | {"rows": rows}, indent=2) + "\n")
    text = ""
    for found in rows:
        folds = "" if found["fold_percent"] is None else f"{found['fold_percent']:.4f}"
        numbers = f"{found['dice']:.3f} | {found['dice_without']:.3f} | {found['hd95_mm']:.2f} | {found['nsd']:.3f}"
        note = f"{found['note']}; {date}, {machine}, peak {peak:.1f} GiB"
        seconds = f"{found['seconds_a_scan']:.1f}"
        first = f"{data}, {found['learnt_from']}"
        cells = (first, found["method"], found["cases"], numbers, folds, seconds, note)
        text += "| " + " | ".join(str(cell) for cell in cells) + " |\n"
    with TABLE.open("a") as stream:
        stream.write(text)
    print(text)
