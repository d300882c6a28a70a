"""A data set and the three folders around it, on which the commands are run as a user would."""

import contextlib
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrlsam.cli import evaluate, plan, predict, register, train

DATASET = "Dataset001_Tiny"
SMALL_PLANNER = "outside_plugins:SmallPlanner"
MODEL = "default__rrlsamPlans"
OUTSIDE_PACKAGE = Path(__file__).parent / "contract" / "outside_package"
"""A folder with plug-ins that belongs to no package of ours."""


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """Roots raw, preprocessed and results in one folder."""

    folder: Path

    @property
    def dataset(self) -> Path:
        """The raw data set."""
        return self.folder / "raw" / DATASET

    @property
    def prepared(self) -> Path:
        """Our folder of preprocessed data."""
        return self.folder / "preprocessed" / DATASET / "rrlsam"

    @property
    def results(self) -> Path:
        """Our folder of results."""
        return self.folder / "results" / DATASET / "rrlsam"

    @property
    def model(self) -> Path:
        """The folder of the default trainer's model."""
        return self.results / MODEL

    def roots(self, *names: str) -> list[str]:
        """Options that name the roots."""
        return [text for name in names for text in (f"--{name}", str(self.folder / name))]

    def plan_arguments(self, *arguments: str, planner: str = SMALL_PLANNER) -> list[str]:
        """Of rrlsam_plan_and_preprocess, with a planner of tiny networks."""
        fixed = ["-d", "1", "-np", "1", "-pl", planner, "--no_pbar"]
        return [*fixed, *self.roots("raw", "preprocessed"), *arguments]

    def train_arguments(
        self, fold: str, *arguments: str, sam: str | None = "none", iterations: int | None = 2
    ) -> list[str]:
        """Of rrlsam_train; `iterations` of every stage."""
        roots = self.roots("raw", "preprocessed", "results")
        chosen = [] if sam is None else ["--sam", sam]
        chosen += [] if iterations is None else ["--iterations", str(iterations)]
        fixed = ["-device", "cpu", "--disable_progress_bar"]
        return ["1", fold, *fixed, *chosen, *roots, *arguments]

    def predict_arguments(self, source: Path, output: Path, *arguments: str) -> list[str]:
        """Of rrlsam_predict, with the only model there is."""
        fixed = ["-device", "cpu", "--disable_progress_bar", *self.roots("results")]
        return ["-i", str(source), "-o", str(output), *fixed, *arguments]

    def plan(self, *arguments: str, planner: str = SMALL_PLANNER) -> Answer:
        """rrlsam_plan_and_preprocess."""
        return run(plan.main, self.plan_arguments(*arguments, planner=planner))

    def train(self, fold: str, *arguments: str, sam: str | None = "none", iterations: int | None = 2) -> Answer:
        """rrlsam_train."""
        return run(train.main, self.train_arguments(fold, *arguments, sam=sam, iterations=iterations))

    def predict(self, source: Path, output: Path, *arguments: str) -> Answer:
        """rrlsam_predict."""
        return run(predict.main, self.predict_arguments(source, output, *arguments))

    def register(self, *arguments: object) -> Answer:
        """rrlsam_register."""
        fixed = ["-device", "cpu", "--disable_progress_bar", *self.roots("results")]
        return run(register.main, [*fixed, *map(str, arguments)])

    def evaluate(self, reference: Path, prediction: Path, *arguments: str) -> Answer:
        """rrlsam_evaluate."""
        return run(evaluate.main, [str(reference), str(prediction), "--disable_progress_bar", *arguments])

    def edit_plans(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Edit every plan.json in place, as a user would."""
        for path in self.prepared.glob("*/atlas_*/plan.json"):
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    def metrics(self, fold: str) -> list[dict[str, Any]]:
        """Lines of a fold's metrics.jsonl."""
        return [json.loads(line) for line in (self.model / f"fold_{fold}" / "metrics.jsonl").read_text().splitlines()]


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> Answer:
    """Run a command in this process; what it does to the package's log is undone."""
    out, err = io.StringIO(), io.StringIO()
    with _logging_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def start(
    command: str, arguments: Sequence[str], *, largest_file: int | None = None, prelude: str = ""
) -> subprocess.Popen[str]:
    """Run a command (plan, train, predict) in a process of its own; `largest_file`: in bytes, as on a full disk."""
    code = f"{prelude}import sys; from rrlsam.cli import {command}; sys.exit({command}.main(sys.argv[1:]))"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2); "
    whole = code if largest_file is None else limit + code
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(OUTSIDE_PACKAGE), "MPLBACKEND": "agg"}
    return subprocess.Popen(
        [sys.executable, "-c", whole, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Answer:
    """Wait for a started command."""
    out, err = process.communicate(timeout=600)
    return Answer(process.returncode, out, err)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lasting_hashes(folder: Path) -> dict[str, str]:
    """The same without what tells the time: reports, logs, curves, and the records of predictions."""
    clocks = ("training_log.txt", "progress.png")
    return {
        name: sum_
        for name, sum_ in hashes(folder).items()
        if not name.startswith((".rrlsam/", "report")) and not name.endswith(clocks)
    }


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    logger = logging.getLogger("rrlsam")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
