"""rrlsam_demo: the whole method on scans that ship with the package."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import add_device_option, add_progress_option, duration, make_parser, run
from rrlsam.errors import RrlsamError, UsageError

if TYPE_CHECKING:
    from rrlsam.evaluation.summary import Evaluation

DEFAULT_BUDGET = "7m"
_MARKER = "DEMO.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_demo", "Learn the hippocampus from one label and 19 unlabelled scans; about 9 minutes."
    )
    parser.add_argument("-o", type=Path, default=Path("rrlsam_demo"), metavar="FOLDER", help="default: ./rrlsam_demo")
    parser.add_argument(
        "--time_budget", type=duration, default=DEFAULT_BUDGET, metavar="TIME", help="training time (default 7m)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in the same folder")
    add_device_option(parser)
    add_progress_option(parser)
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.cli import plan, predict, train
    from rrlsam.demo.dataset import build_dataset

    began = time.monotonic()
    folder: Path = arguments.o
    _claim(folder, arguments.overwrite)
    data = build_dataset(folder / "raw")
    roots = {name: ["--" + name, str(folder / name)] for name in ("raw", "preprocessed", "results")}
    quiet = ["--disable_progress_bar"] if arguments.disable_progress_bar else []
    device = ["-device", arguments.device]
    print("One label, 19 unlabelled scans, 10 held out. SAM's weights do not ship, so this runs with --sam none.")
    _step(plan.main, "rrlsam_plan_and_preprocess", ["-d", "1", *roots["raw"], *roots["preprocessed"], *quiet])
    budget = ["--sam", "none", "--time_budget", f"{arguments.time_budget:.0f}s"]
    everything = [*roots["raw"], *roots["preprocessed"], *roots["results"]]
    _step(train.main, "rrlsam_train", ["1", "all", *budget, *device, *everything, *quiet])
    places = ["-i", str(data / "imagesTs"), "-o", str(folder / "predictions")]
    _step(predict.main, "rrlsam_predict", [*places, "--save_registration", *device, *roots["results"], *quiet])
    print(_report(data, folder))
    print(f"Done in {(time.monotonic() - began) / 60:.1f} minutes.")
    return 0


def _claim(folder: Path, overwrite: bool) -> None:
    """Make the demo's folder; an earlier demo goes only if that was asked for, anything else never."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / _MARKER).is_file():
            raise UsageError(f"{folder}: exists and is not a demo of ours; give another folder with -o")
        if not overwrite:
            raise UsageError(f"{folder}: holds an earlier demo; give --overwrite or another folder with -o")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text("Made by rrlsam_demo; `rrlsam_demo --overwrite` replaces this folder.\n")


def _step(command: Callable[[Sequence[str]], int], name: str, arguments: list[str]) -> None:
    print(f"\n$ {name} {' '.join(arguments)}")
    sys.stdout.flush()
    code = command(arguments)
    if code:
        raise DemoStepFailed(name, code)


class DemoStepFailed(RrlsamError):
    """A command of the demo failed; its own message stands above."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed, see above")
        self.exit_code = code


def _report(data: Path, folder: Path) -> str:
    """Score the held-out scans, draw the picture, and say where everything is."""
    from rrlsam.demo.report import draw_cases
    from rrlsam.evaluation.evaluate import evaluate_folder, labels_from_file
    from rrlsam.evaluation.summary import table, write_csv, write_summary
    from rrlsam.prediction.predict import worst_fold_percent
    from rrlsam.prediction.predicted import REGISTRATION_FOLDER
    from rrlsam.system.resources import usable_cores

    predictions, labels = folder / "predictions", labels_from_file(data / "dataset.json")
    scores: dict[str, Evaluation] = {}
    for name, place in (("registration", predictions / REGISTRATION_FOLDER), ("segmentation", predictions)):
        scores[name] = evaluate_folder(data / "labelsTs", place, labels, workers=usable_cores())
        write_summary(scores[name], place / "summary.json")
        write_csv(scores[name], place / "summary.csv")
    picture = folder / "demo.png"
    draw_cases(scores["segmentation"], data / "imagesTs", picture)
    lines = [
        "",
        "Held-out scans, trained without SAM's distillation (--sam none):",
        table(scores),
        f"folded voxels: at most {worst_fold_percent(predictions):.4f} % of a scan",
        f"picture:     {picture}",
        f"predictions: {predictions}",
        f"model:       {folder / 'results'}",
    ]
    return "\n".join(lines)
