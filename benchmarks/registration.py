"""rrlsam and registration tools from PyPI on the same cases in one run: the atlas's label brought to every scan.

    python benchmarks/registration.py --data hippocampus oasis --raw RAW --results RESULTS --work WORK

RESULTS holds a trained model of each data set (benchmarks/one_shot.py leaves one in WORK/auto_1/results). Every method
runs with the same number of threads, one scan after the other, and starts from the files. Appends a table a data set to
benchmarks/results/registration.md and writes WORK/DATA.json with all figures. Needs the `benchmark` extra of setup.cfg.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, hardware, score, summary, test_scans, validation_scans, versions
from peers import PEERS
from scipy.stats import wilcoxon

from rrlsam.engine.device import choose_device
from rrlsam.geometry import geometry_of
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.models.choose import fold_folder, select_model
from rrlsam.nets.jacobian import fold_percent
from rrlsam.prediction.by_model import ByModel, atlas_of
from rrlsam.prediction.inference import Model
from rrlsam.prediction.predict import predict_scan
from rrlsam.prediction.predicted import Options
from rrlsam.registration.apply import warp_labels
from rrlsam.registration.pair import PairTransform, on_scan
from rrlsam.registration.register_scans import ByOptimisation, Moving, Registrar, foreground, read_moving
from rrlsam.registration.transform_files import inverse_errors
from rrlsam.scans.dataset import Dataset, Scan, find_dataset, load_dataset
from rrlsam.scans.inputs import InputScan
from rrlsam.scans.volume import ending_of, read_channels, write_image
from rrlsam.settings import FINAL, OPTIMISATION_ITERATIONS, QUICK_ITERATIONS


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set of the benchmark."""

    number: str
    fold: str = "0"
    test: bool = False
    """Score imagesTs against labelsTs instead of the fold's validation cases."""
    without: tuple[str, ...] = ()
    """Structures too small to be told apart, left out of the second Dice column."""


DATA = {
    "hippocampus": Data(number="4"),
    "oasis": Data(number="35", test=True, without=("L-Vessel", "R-Vessel")),
}
OURS = {
    "network": "rrlsam, network alone (--refine 0)",
    "quick": f"rrlsam, default (--refine {QUICK_ITERATIONS})",
    "refined": "rrlsam --refine 20",
    "alone": f"rrlsam without a model ({OPTIMISATION_ITERATIONS} steps)",
    "segmentation": "rrlsam AP segmentation",
}
REFERENCE = "refined"
"""The paired test compares the others with this row."""
HEADER = (
    "| method | Dice | spread | Dice without small | HD95 mm | NSD 1 mm | folds % | inverse vox | s a scan "
    "| CPU s a scan | peak GiB | p |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def main() -> None:
    """Run the benchmark, or, with --worker, one of our own methods in this process."""
    arguments = _parse()
    if arguments.worker:
        _work(arguments)
        return
    for name in arguments.data:
        _run(name, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    for name in ("raw", "results", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", choices=OURS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, arguments: argparse.Namespace) -> None:
    dataset, atlas, scans = _cases(name, arguments)
    rows = {}
    for method in arguments.methods:
        print(f"{name}: {method}", flush=True)
        folder = arguments.work / name / method
        folder.mkdir(parents=True, exist_ok=True)
        reports = _ours(name, method, arguments) if method in OURS else _peer(method, atlas, scans, folder, arguments)
        rows[method] = _row(method, reports, score(scans, folder, dataset), DATA[name].without)
    _write(name, dataset, atlas, scans, rows, arguments)


def _cases(name: str, arguments: argparse.Namespace) -> tuple[Dataset, Scan, list[Scan]]:
    data = DATA[name]
    dataset = load_dataset(find_dataset(arguments.raw, data.number))
    checkpoint = load_checkpoint(_checkpoint(name, arguments))
    atlas = dataset.scan(checkpoint.plan.atlases[0])
    scans = test_scans(dataset) if data.test else validation_scans(dataset, checkpoint.provenance.training_cases)
    return dataset, atlas, scans


def _checkpoint(name: str, arguments: argparse.Namespace) -> Path:
    model = select_model(arguments.results, dataset=DATA[name].number)
    return fold_folder(model.folder, DATA[name].fold) / FINAL


def _peer(
    method: str, atlas: Scan, scans: Sequence[Scan], folder: Path, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    reports = []
    for scan in scans:
        files = [scan.images[0], atlas.images[0], atlas.label, folder / scan.label.name]
        options = ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
        script = str(Path(__file__).with_name("peers.py"))
        reports += _lines([script, method, *map(str, files), *options], arguments.threads)
    return reports


def _ours(name: str, method: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    folders = [text for key in ("raw", "results", "work") for text in (f"--{key}", str(getattr(arguments, key)))]
    options = ["--data", name, "--worker", method, "--threads", str(arguments.threads)]
    return _lines([__file__, *folders, *options], arguments.threads)


def _lines(command: list[str], threads: int) -> list[dict[str, object]]:
    """The lines of JSON that a Python script prints."""
    limits = {"OMP_NUM_THREADS": str(threads), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *command], env=os.environ | limits, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _work(arguments: argparse.Namespace) -> None:
    """One of our own methods over all scans; a line of JSON a scan."""
    torch.set_num_threads(arguments.threads)
    (name,) = arguments.data
    dataset, atlas, scans = _cases(name, arguments)
    model = Model(load_checkpoint(_checkpoint(name, arguments)), choose_device("cpu"))
    folder = arguments.work / name / arguments.worker
    work = _worker(arguments.worker, model, atlas)
    for index, scan in enumerate([scans[0], *scans]):  # the first one warms up
        began, cpu = time.monotonic(), time.process_time()
        transform = work(scan, folder / f"{scan.case}{dataset.file_ending}")
        report = {
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - cpu,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "version": versions(),
        }
        if index:
            print(json.dumps(report | _quality(scan, transform)), flush=True)


def _quality(scan: Scan, transform: PairTransform | None) -> dict[str, float | None]:
    """Folded voxels in percent, forth or back, and how far forth and back leads astray within the body, in voxels."""
    if transform is None:
        return {"fold_percent": None, "inverse_median": None, "inverse_99": None}
    errors = inverse_errors(transform, foreground(read_channels(scan.images)))
    return {
        "fold_percent": max(fold_percent(transform.field_in_voxels(inverse=inverse)) for inverse in (False, True)),
        "inverse_median": float(np.median(errors)),
        "inverse_99": float(np.percentile(errors, 99)),
    }


def _worker(method: str, model: Model, atlas: Scan) -> Callable[[Scan, Path], PairTransform | None]:
    carried = atlas_of(model)
    if method == "segmentation":
        return lambda scan, path: _segment(scan, path, model)
    if method == "alone":
        registrar = ByOptimisation(metric="lncc", iterations=OPTIMISATION_ITERATIONS, device=choose_device("cpu"))
        given = InputScan(case=atlas.case, images=atlas.images, ending=ending_of(atlas.images[0]))
        moving = read_moving(given, atlas.label)
    else:
        steps = {"network": 0, "quick": QUICK_ITERATIONS, "refined": 20}[method]
        registrar, moving = ByModel(model=model, iterations=steps, method=method, atlas=carried), carried
    return lambda scan, path: _register(scan, path, registrar, moving)


def _register(scan: Scan, path: Path, registrar: Registrar, moving: Moving) -> PairTransform:
    fixed = read_channels(scan.images)
    transform = on_scan(registrar.register(fixed, moving), geometry_of(fixed), geometry_of(moving.image))
    if moving.labels is None:
        raise SystemExit("the atlas has no label")
    write_image(warp_labels(moving.labels, transform), path)
    return transform


def _segment(scan: Scan, path: Path, model: Model) -> None:
    given = InputScan(case=scan.case, images=scan.images, ending=ending_of(path))
    predict_scan(given, [model], path.parent, Options())


def _row(method: str, reports: list[dict[str, object]], scores, without: Sequence[str]) -> dict[str, object]:
    figures = summary(scores, without)

    def average(key: str) -> float:
        return float(np.mean([float(report[key]) for report in reports]))  # pyright: ignore[reportArgumentType]

    def worst(key: str) -> float | None:
        values = [float(report[key]) for report in reports if report.get(key) is not None]  # pyright: ignore[reportArgumentType]
        return max(values, default=None)

    return {
        "method": OURS.get(method, method),
        "version": reports[0]["version"],
        **figures,
        "spread": float(np.std(figures["per_case"], ddof=1)),
        "fold_percent": worst("fold_percent"),
        "inverse_median": worst("inverse_median"),
        "inverse_99": worst("inverse_99"),
        "seconds": average("seconds"),
        "cpu_seconds": average("cpu_seconds"),
        "peak_gib": max(float(report["peak_gib"]) for report in reports),  # pyright: ignore[reportArgumentType]
    }


def _write(
    name: str,
    dataset: Dataset,
    atlas: Scan,
    scans: Sequence[Scan],
    rows: dict[str, dict],
    arguments: argparse.Namespace,
) -> None:
    for method, row in rows.items():
        differs = REFERENCE in rows and method != REFERENCE
        row["p"] = float(wilcoxon(rows[REFERENCE]["per_case"], row["per_case"]).pvalue) if differs else None
    run = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "threads": arguments.threads,
        "seed": arguments.seed,
        "atlas": atlas.case,
        "cases": [scan.case for scan in scans],
        "rows": rows,
    }
    (arguments.work / f"{name}.json").write_text(json.dumps(run, indent=2) + "\n")
    tools = sorted({str(row["version"]) for row in rows.values()})
    text = (
        f"\n## {dataset.name}, {len(scans)} scans, atlas {atlas.case}\n\n{run['date']}, {run['hardware']}, "
        f"{arguments.threads} threads, seed {arguments.seed}; {'; '.join(tools)}\n\n{HEADER}"
    )
    for row in rows.values():
        folds, p = (" " if v is None else f"{v:.4f}" for v in (row["fold_percent"], row["p"]))
        astray = " " if row["inverse_99"] is None else f"{row['inverse_median']:.2f}, {row['inverse_99']:.2f}"
        numbers = [f"{row[k]:.3f}" for k in ("dice", "spread", "dice_without")] + [
            f"{row['hd95_mm']:.2f}",
            f"{row['nsd']:.3f}",
        ]
        costs = [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_gib']:.1f}"]
        text += "| " + " | ".join([str(row["method"]), *numbers, folds, astray, *costs, p]) + " |\n"
    text += _per_structure(rows)
    path = RESULTS / "registration.md"
    head = f"# The atlas's label brought to every scan\n\nBy `benchmarks/registration.py`. {_LEGEND}\n"
    path.write_text((path.read_text() if path.exists() else head) + text)
    print(text)


def _per_structure(rows: dict[str, dict]) -> str:
    """Mean Dice of every structure, a column a method."""
    lines = ["| Dice of | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for structure in next(iter(rows.values()))["per_structure"]:
        cells = [f"{row['per_structure'][structure]:.2f}" for row in rows.values()]
        lines.append(f"| {structure} | " + " | ".join(cells) + " |")
    return "\n" + "\n".join(lines) + "\n"


_LEGEND = (
    "Spread: standard deviation over scans. Folds: worst scan, ten one-sided determinants on the scan's own grid, for "
    "rrlsam forth and back. Inverse: how far forth and back leads from a voxel of the body, median and 99th percentile "
    "of the worst scan. Seconds from files to the warped label; for peers without the start of Python, which a "
    "command in a shell would add, for rrlsam without loading the model, which is done once. p: Wilcoxon's signed-rank "
    "test of the scans' mean Dice against `rrlsam --refine 20`."
)


if __name__ == "__main__":
    main()
