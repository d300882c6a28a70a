"""What the teacher and the parts of the method are worth: paired ablations, the same seeds and data for every arm.

    python benchmarks/distillation.py --work WORK                        # the stand-in ISNet as teacher, all arms
    python benchmarks/distillation.py --work WORK --teacher vit_b        # SAM, by name or file of weights
    python benchmarks/distillation.py --work WORK --arms none given --seeds 0 1 2
    python benchmarks/distillation.py --work WORK --table                # train nothing, write the tables

Data: the package's own hippocampi, one label, some of the unlabelled scans, ten scans to score. All arms train for the
same fixed numbers of iterations, never for a time, so that pairs are exact and other load changes nothing. What is in
WORK is not made again: a call that was stopped goes on where it was. Tables go into
benchmarks/results/distillation.md; what is written there by hand outside the marks is kept. Needs, for the stand-in,
npm, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import inspect
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from arms import ARMS, Arm
from common import RESULTS, hardware, score, summary, test_scans, versions
from paired_tables import Scores, Setting, TrainedArm, tables
from teachers import source_of
from true_labels import true_labels

import rrlsam
from rrlsam.cli.common import count
from rrlsam.cli.reporting import start_logging
from rrlsam.demo.dataset import build_dataset
from rrlsam.engine.device import choose_device
from rrlsam.engine.journal import Journal
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.plan import Plan
from rrlsam.planning.request import prepare_folds
from rrlsam.prediction.inference import Model
from rrlsam.prediction.predict import predict_scans
from rrlsam.prediction.predicted import REGISTRATION_FOLDER, Options
from rrlsam.registry import get_planner, get_trainer
from rrlsam.scans.dataset import Dataset, load_dataset
from rrlsam.scans.inputs import InputScan
from rrlsam.settings import FINAL, TrainingOptions
from rrlsam.system.files import atomic_write
from rrlsam.system.jsonio import load_json, save_json
from rrlsam.system.progress import silent
from rrlsam.teacher.teaching import TeacherSource
from rrlsam.training import METRICS, train
from rrlsam.workspace import Workspace, make_workspace

TABLE = RESULTS / "distillation.md"
BEGIN, END = "<!-- tables of benchmarks/distillation.py -->", "<!-- end of tables -->"
FOLD, BASE, SETTING = "all", "base", "setting.json"
WAYS = {"refined": None, "network": 0}
"""How scans are predicted: as rrlsam_predict does, or by the network's own field (steps of refinement)."""


def main() -> None:
    """Run what is asked for and missing, then write the tables."""
    arguments = _parse()
    start_logging()
    if arguments.table:
        _write(arguments.work, load_json(Setting, arguments.work / SETTING))
        return
    (arguments.work / "features").mkdir(parents=True, exist_ok=True)
    setting = _setting(arguments)
    _require_same(setting, arguments.work / SETTING)
    dataset = load_dataset(_data(arguments.work, setting.scans))
    for seed in arguments.seeds:
        for name in _arms(arguments):
            if not _result(arguments.work, name, seed).exists():
                _run(ARMS[name], seed, dataset, setting, arguments.work, arguments.truth)
    _write(arguments.work, setting)


def _setting(arguments: argparse.Namespace) -> Setting:
    return Setting(
        teacher=arguments.teacher,
        scans=arguments.scans,
        stride=arguments.stride,
        distillation=arguments.iterations[0],
        joint=arguments.iterations[1],
        mutual=arguments.iterations[2],
        rounds=arguments.rounds,
        refinement=arguments.refinement,
        code=_code(),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", default="isnet", help="isnet (the stand-in), vit_b, vit_l, vit_h or a file")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: all that can be run")
    parser.add_argument("--truth", type=Path, help="labels CASE.nii.gz of the unlabelled scans, for the arm truth")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scans", type=count, default=12, help="training scans, the labelled one among them; up to 20")
    parser.add_argument("--stride", type=count, default=8, help="teachers of slices see every n-th slice")
    parser.add_argument(
        "--iterations",
        nargs=3,
        type=count,
        default=[80, 50, 50],
        metavar=("DISTIL", "JOINT", "MUTUAL"),
        help="of stage 1a, 1b and a round of stage 2 (default: 80 50 50)",
    )
    parser.add_argument("--rounds", type=count, default=1, help="rounds of stage 2")
    parser.add_argument("--refinement", type=int, default=5, help="steps that refine a training scan's field")
    parser.add_argument("--table", action="store_true", help="only write the tables of what is there")
    return parser.parse_args()


def _arms(arguments: argparse.Namespace) -> list[str]:
    """What is asked for, else all arms for which there is what they need."""
    return arguments.arms or [name for name, arm in ARMS.items() if arguments.truth or arm.teacher != "truth"]


def _require_same(setting: Setting, path: Path) -> None:
    """One folder of work, one setting: nothing else could be compared."""
    if path.exists() and load_json(Setting, path) != setting:
        raise SystemExit(f"{path}: was begun with other settings or sources; give the same, or another --work")
    save_json(setting, path)


def _code() -> str:
    """Hash of the package's sources, planners and trainers among them."""
    plugins = [type(get_planner("default")), type(get_trainer("default"))]
    folders = [Path(inspect.getfile(one)).parent for one in (rrlsam, *plugins)]
    digest = hashlib.sha256()
    for path in sorted({path.resolve() for folder in folders for path in folder.rglob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _data(work: Path, scans: int) -> Path:
    """The demo's data set with the labelled scan, the first unlabelled ones and all that are scored."""
    raw = work / "raw"
    if not raw.exists():
        folder = build_dataset(work / "raw.partial")
        for surplus in sorted((folder / "imagesUn").iterdir())[scans - 1 :]:
            surplus.unlink()
        os.replace(work / "raw.partial", raw)
    (folder,) = raw.iterdir()
    return folder


def _run(arm: Arm, seed: int, dataset: Dataset, setting: Setting, work: Path, truth: Path | None) -> None:
    """Train, predict and score one arm with one seed; the result is written last, and what it came from goes.

    A training that was interrupted goes on; its seconds count from there.
    """
    folder = _result(work, arm.name, seed).parent
    roots = {"raw": work / "raw", "preprocessed": work / "preprocessed", "results": folder / "results"}
    workspace = make_workspace(roots)
    _prepare(arm, dataset, setting, workspace, work)
    source = _source(arm, dataset, setting, workspace, work, truth)
    ablations = frozenset(arm.ablations) | (frozenset() if source else {"no_distillation"})
    options = TrainingOptions(
        fold=FOLD, trainer=arm.trainer, plans_name=arm.plans, ablations=ablations, seed=seed, resume=True, device="cpu"
    )
    began = time.monotonic(), time.process_time()
    train(dataset, workspace, options, silent, teacher=source)
    trained = fold_folder(model_folder(workspace.results(dataset.name), arm.trainer, arm.plans), FOLD)
    result = TrainedArm(
        arm=arm.name,
        seed=seed,
        scores={way: _score(trained, steps, dataset, folder / way) for way, steps in WAYS.items()},
        distillation=_distillation(trained),
        seconds=time.monotonic() - began[0],
        cpu_seconds=time.process_time() - began[1],
        threads=torch.get_num_threads(),
        date=datetime.date.today().isoformat(),
    )
    save_json(result, _result(work, arm.name, seed))
    shutil.rmtree(folder / "results")
    print(
        f"{arm.name}, seed {seed}: {result.seconds:.0f} s, {result.cpu_seconds:.0f} CPU s; {result.scores}", flush=True
    )


def _source(
    arm: Arm, dataset: Dataset, setting: Setting, workspace: Workspace, work: Path, truth: Path | None
) -> TeacherSource | None:
    """The arm's teacher, None for none."""
    if arm.teacher == "truth":
        if truth is None:
            raise SystemExit("the arm truth needs --truth FOLDER")
        made = prepare_folds(dataset, workspace, (FOLD,), plans_name=arm.plans, progress=silent)
        (prepared,) = made.atlases.values()
        return true_labels(dataset, prepared, truth)
    name = setting.teacher if arm.teacher == "given" else arm.teacher
    return None if name is None else source_of(name, work / "downloads", setting.stride)


def _prepare(arm: Arm, dataset: Dataset, setting: Setting, workspace: Workspace, work: Path) -> None:
    """The plans of the arm: the default planner's with the iterations that were asked for; all share the features."""
    plans = workspace.preprocessed(dataset.name)
    if not (plans / BASE).exists():
        made = prepare_folds(dataset, workspace, (FOLD,), plans_name=BASE, progress=silent)
        for prepared in made.atlases.values():
            (prepared.folder / "sam_features").symlink_to((work / "features").absolute())
    if not (plans / arm.plans).exists():
        shutil.copytree(plans / BASE, plans / arm.plans, symlinks=True)
    (path,) = (plans / arm.plans).glob("atlas_*/plan.json")
    save_json(_with(load_json(Plan, path), arm, setting), path)


def _with(plan: Plan, arm: Arm, setting: Setting) -> Plan:
    def stage(name: str, iterations: int) -> dict[str, object]:
        return {name: dataclasses.replace(getattr(plan, name), iterations=iterations)}

    return dataclasses.replace(
        plan,
        **stage("distillation", setting.distillation * arm.longer),
        **stage("joint", setting.joint),
        **stage("mutual", setting.mutual),
        rounds=setting.rounds,
        refinement_iterations=setting.refinement,
        distillation_loss=arm.loss,
    )


def _score(trained: Path, steps: int | None, dataset: Dataset, output: Path) -> Scores:
    """Mean Dice of the test scans."""
    scans = test_scans(dataset)
    model = Model(load_checkpoint(trained / FINAL), choose_device("cpu"))
    options = Options(save_registration=True, average=False, refinement_iterations=steps)
    inputs = [InputScan(case=scan.case, images=scan.images, ending=dataset.file_ending) for scan in scans]
    report = predict_scans(inputs, [model], output, options, silent)
    if report.failures:
        raise SystemExit(f"{trained}: not predicted: {', '.join(report.failures)}")
    found = [summary(score(scans, masks, dataset), ())["dice"] for masks in (output, output / REGISTRATION_FOLDER)]
    return Scores(segmentation=float(str(found[0])), registration=float(str(found[1])))


def _distillation(trained: Path) -> tuple[float, float] | None:
    """Mean loss over the first and over the last tenth of stage 1a, if there was one."""
    journal = Journal(trained / METRICS)
    terms = [record["terms"]["distillation"] for record in journal.records() if record["stage"] == "distil_sam"]
    journal.close()
    losses = [loss for loss in terms if loss is not None]
    if not losses:
        return None
    tenth = max(1, len(losses) // 10)
    return float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))


def _result(work: Path, arm: str, seed: int) -> Path:
    return work / "runs" / arm / f"seed_{seed}" / "result.json"


def _write(work: Path, setting: Setting) -> None:
    """Put the tables between the marks."""
    paths = sorted((work / "runs").glob("*/seed_*/result.json"))
    trained = [load_json(TrainedArm, path) for path in paths]
    text = "\n".join([_described(setting, trained), *tables(trained)])
    old = TABLE.read_text() if TABLE.exists() else f"# What the teacher is worth\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    with atomic_write(TABLE) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    print(text)


def _described(setting: Setting, trained: Sequence[TrainedArm]) -> str:
    dates = sorted({one.date for one in trained})
    spent = np.median([one.cpu_seconds for one in trained]) if trained else 0.0
    threads = " or ".join(str(n) for n in sorted({one.threads for one in trained}))
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "nothing run yet"
    return (
        f"{setting.scans} training scans (one label), 10 scored; teacher `{setting.teacher}`, one slice in "
        f"{setting.stride}; {setting.distillation}, {setting.joint} and {setting.rounds} x {setting.mutual} iterations "
        f"(stages 1a, 1b, 2), fields refined by {setting.refinement} steps in training. {when}, {hardware()}, "
        f"{versions()}, sources {setting.code}; {spent:.0f} CPU s a run (median), threads: {threads}.\n"
    )


if __name__ == "__main__":
    main()
