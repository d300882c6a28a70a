"""Plan, train, predict and score one data set, beside ANTs SyN with the same atlas on the same cases.

    python benchmarks/one_shot.py -d 4 --fold 0 --time_budget 20m --raw RAW --work WORK [--syn] [--test]

--only_syn runs nothing but the peer, with the atlas of the model that WORK already holds. Writes WORK/DATASET.json and
appends a row a method to benchmarks/results/one_shot.md. --syn and --only_syn need antspyx.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common import RESULTS, confidence_correlation, hardware, score, summary, test_scans, validation_scans, versions
from peers import Pair, ants_syn

from rrlsam.checkpoint import FINAL, load_checkpoint
from rrlsam.cli import plan, predict, train
from rrlsam.cli.common import duration
from rrlsam.dataset import Dataset, Scan, find_dataset, load_dataset
from rrlsam.evaluate import Evaluation
from rrlsam.models import fold_folder, model_folder
from rrlsam.predict import REGISTRATION_FOLDER, worst_fold_percent
from rrlsam.resources import usable_cores
from rrlsam.volume import read_image, write_like
from rrlsam.workspace import make_workspace

TABLE = RESULTS / "one_shot.md"
SYN_SEEDS = (1, 2, 3)
HEADER = (
    "| data | method | cases | Dice | Dice without small | HD95 mm | NSD 1 mm | worst folds % | s a scan | notes |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def main() -> None:
    """Run the benchmark."""
    arguments = _parse()
    dataset = load_dataset(find_dataset(arguments.raw, arguments.d))
    roots = {"raw": arguments.raw, "preprocessed": arguments.work / "pre", "results": arguments.work / "results"}
    flags = [text for name, path in roots.items() for text in (f"--{name}", str(path))]
    timings = None if arguments.only_syn else _train(arguments, flags)
    model = model_folder(make_workspace(roots).results(dataset.name), "default", "rrlsamPlans")
    checkpoint = load_checkpoint(fold_folder(model, arguments.fold) / FINAL)
    scans = test_scans(dataset) if arguments.test else validation_scans(dataset, checkpoint.provenance.training_cases)
    rows = [] if timings is None else _rrlsam_rows(dataset, arguments, model, scans, timings)
    if arguments.syn or arguments.only_syn:
        rows += _syn_rows(dataset, arguments, checkpoint.plan.atlases[0], scans)
    _write(dataset, arguments, rows, checkpoint.plan.atlases[0])


def _train(arguments: argparse.Namespace, flags: list[str]) -> str:
    """Plan and train; says how long both took."""
    planned, _ = _timed(lambda: plan.main(["-d", arguments.d, "-f", arguments.fold, *flags[:4]]))
    options = ["--sam", arguments.sam, "--time_budget", f"{arguments.time_budget:.0f}s"]
    trained, _ = _timed(lambda: train.main([arguments.d, arguments.fold, *options, *flags, *arguments.train]))
    return f"{arguments.time_budget / 60:.0f} min budget, plan {planned:.0f} s, train and validate {trained:.0f} s"


def _rrlsam_rows(
    dataset: Dataset, arguments: argparse.Namespace, model: Path, scans: Sequence[Scan], note: str
) -> list[dict[str, object]]:
    output = arguments.work / "predictions" / dataset.name
    inputs = _link_inputs(scans, arguments.work / "inputs" / dataset.name)
    flags = ["-m", str(model), "-f", arguments.fold, "--save_registration"]
    predicted, _ = _timed(lambda: predict.main(["-i", str(inputs), "-o", str(output), *flags]))
    rows = []
    for name, folder in (("registration", output / REGISTRATION_FOLDER), ("AP segmentation", output)):
        scores = score(scans, folder, dataset)
        if folder == output:
            note += f"; predicted and true Dice correlate with r = {confidence_correlation(output, scores):.2f}"
        rows.append(_row(f"rrlsam {name}", scores, arguments.without, worst_fold_percent(output), predicted, note))
    return rows


def _syn_rows(
    dataset: Dataset, arguments: argparse.Namespace, atlas: str, scans: Sequence[Scan]
) -> list[dict[str, object]]:
    rows = []
    for seed in SYN_SEEDS:
        folder = arguments.work / "syn" / dataset.name / f"seed_{seed}"
        seconds = _syn(dataset.scan(atlas), scans, folder, seed)
        note = f"same atlas, seed {seed}"
        scores = score(scans, folder, dataset)
        rows.append(_row("ANTs SyN, default settings", scores, arguments.without, None, seconds, note))
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="number or name of the data set")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--time_budget", type=duration, default="20m")
    parser.add_argument("--sam", default="none")
    parser.add_argument("--syn", action="store_true", help="run ANTs SyN too")
    parser.add_argument(
        "--only_syn", action="store_true", help="run nothing but ANTs SyN, beside a model that is there"
    )
    parser.add_argument("--test", action="store_true", help="score imagesTs against labelsTs, not the validation cases")
    parser.add_argument("--without", nargs="*", default=[], help="structures left out of the second Dice column")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options of rrlsam_train")
    return parser.parse_args()


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    began = time.monotonic()
    code = work()
    if code:
        raise SystemExit(code)
    return time.monotonic() - began, code


def _link_inputs(scans: Sequence[Scan], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for scan in scans:
        for path in scan.images:
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    return folder


def _syn(atlas: Scan, scans: Sequence[Scan], folder: Path, seed: int) -> float:
    """Warp the atlas label by ANTs SyN with default settings and a fixed seed; seconds in all."""
    if atlas.label is None:
        raise SystemExit("the atlas has no label")
    began = time.monotonic()
    for scan in scans:
        pair = Pair(fixed=scan.images[0], moving=atlas.images[0], label=atlas.label, threads=usable_cores(), seed=seed)
        warped, _ = ants_syn(pair)
        write_like(warped, read_image(scan.images[0]), folder / f"{scan.case}.nii.gz")
    return time.monotonic() - began


def _row(
    method: str, scores: Evaluation, without: Sequence[str], folds: float | None, seconds: float, note: str
) -> dict[str, object]:
    return {
        "method": method,
        "cases": len(scores.cases),
        **summary(scores, without),
        "fold_percent": folds,
        "seconds_a_scan": seconds / len(scores.cases),
        "note": note,
    }


def _write(dataset: Dataset, arguments: argparse.Namespace, rows: list[dict[str, object]], atlas: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    run = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "peak_memory_gib": peak,
        "atlas": atlas,
        "fold": arguments.fold,
        "time_budget_s": arguments.time_budget,
        "sam": arguments.sam,
        "rows": rows,
    }
    (arguments.work / f"{dataset.name}.json").write_text(json.dumps(run, indent=2) + "\n")
    RESULTS.mkdir(exist_ok=True)
    text = TABLE.read_text() if TABLE.exists() else f"# One label, measured by benchmarks/one_shot.py\n\n{HEADER}"
    data = f"{dataset.name} {'test' if arguments.test else 'fold ' + arguments.fold}, atlas {atlas}"
    for row in rows:
        folds = "" if row["fold_percent"] is None else f"{row['fold_percent']:.4f}"
        note = f"{row['note']}; --sam {arguments.sam}; {run['date']}, {run['hardware']}, peak {peak:.1f} GiB"
        numbers = f"{row['dice']:.3f} | {row['dice_without']:.3f} | {row['hd95_mm']:.2f} | {row['nsd']:.3f}"
        cells = (data, row["method"], row["cases"], numbers, folds, f"{row['seconds_a_scan']:.1f}", note)
        text += "| " + " | ".join(str(cell) for cell in cells) + " |\n"
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
