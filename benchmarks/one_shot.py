"""Plan, train, predict and score one data set, beside registration tools with the same atlas on the same cases.

    python benchmarks/one_shot.py -d 4 --fold 0 --time_budget 20m --raw RAW --work WORK [--peers ...] [--test]
    python benchmarks/one_shot.py ... --atlas auto CASE CASE     # each in turn, then their mean
    python benchmarks/one_shot.py ... --shots 1 2 5 10 80        # the few-shot curve; all labels: full supervision

--only_peers runs nothing but the peers, with the atlases of the models that WORK already holds; --trained predicts and
scores with these models anew. Writes WORK/DATASET.json and appends a row a method to benchmarks/results/one_shot.md,
from which readme_table.py makes the README's tables. Peers need the `benchmark` extra of setup.cfg.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import confidence_correlation, link_files, score, test_scans, validation_scans
from peers import PEERS, Pair
from rows import Row, data_name, make_row, write_rows

from rrlsam.cli import plan, predict, train
from rrlsam.cli.common import count, duration
from rrlsam.models.checkpoint import load_checkpoint
from rrlsam.models.choose import fold_folder, model_folder
from rrlsam.plan import Plan
from rrlsam.prediction.predict import worst_fold_percent
from rrlsam.prediction.predicted import REGISTRATION_FOLDER
from rrlsam.scans.dataset import Dataset, Scan, find_dataset, load_dataset
from rrlsam.scans.volume import ending_of, read_image, write_like
from rrlsam.settings import FINAL
from rrlsam.system.resources import usable_cores
from rrlsam.workspace import make_workspace

SEEDS = {"ants_syn": (1, 2, 3)}
"""Of the peer whose result was found to depend on it by up to 0.04; the others run once."""
AUTO = "auto"
AVERAGED = ("dice", "dice_without", "hd95_mm", "nsd", "fold_percent", "seconds_a_scan")


def main() -> None:
    """Run the benchmark."""
    arguments = _parse()
    dataset = load_dataset(find_dataset(arguments.raw, arguments.d))
    rows = []
    for shots in arguments.shots:
        of_shots = [row for atlas in arguments.atlas for row in _arm(dataset, arguments, atlas, shots)]
        rows += of_shots + (_means(of_shots) if len(arguments.atlas) > 1 else [])
    settings = {"fold": arguments.fold, "time_budget_s": arguments.time_budget, "sam": arguments.sam}
    write_rows(rows, data_name(dataset, arguments), arguments.work / f"{dataset.name}.json", settings)


def _arm(dataset: Dataset, arguments: argparse.Namespace, atlas: str, shots: int) -> list[Row]:
    """Train, predict and score with one atlas and one number of labels."""
    folder = arguments.work / f"{atlas}_{shots}"
    roots = {"raw": arguments.raw, "preprocessed": arguments.work / "pre", "results": folder / "results"}
    flags = [text for name, path in roots.items() for text in (f"--{name}", str(path))]
    chosen = ["--shots", str(shots), *([] if atlas == AUTO else ["--atlas", atlas])]
    timings = "predicted anew" if arguments.trained or arguments.only_peers else _train(arguments, chosen, flags)
    model = model_folder(make_workspace(roots).results(dataset.name), "default", "rrlsamPlans")
    checkpoint = load_checkpoint(fold_folder(model, arguments.fold) / FINAL)
    scans = test_scans(dataset) if arguments.test else validation_scans(dataset, checkpoint.provenance.training_cases)
    budget_s = checkpoint.plan.time_budget_s or arguments.time_budget
    trained = f"{budget_s / 60:.0f} min budget, {_iterations(checkpoint.plan)} iterations; {timings}"
    trained += f"; --sam {arguments.sam}"
    rows = [] if arguments.only_peers else _rrlsam_rows(dataset, arguments, model, scans, trained, folder)
    for peer in arguments.peers:
        rows += _peer_rows(peer, dataset, arguments, checkpoint.plan.atlases[0], scans, folder)
    labels = "" if shots == 1 else f" and {shots - 1} label{'s' * (shots > 2)} more"
    return [row | {"learnt_from": f"atlas {checkpoint.plan.atlases[0]}{labels}"} for row in rows]


def _means(rows: list[Row]) -> list[Row]:
    """Of each method over the atlases; the note has the single figures."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        same = [row for row in rows if row["method"] == method]
        averages = {key: float(np.mean([row[key] for row in same])) for key in AVERAGED if same[0][key] is not None}
        note = "Dice " + ", ".join(f"{row['dice_without']:.3f}" for row in same)
        atlases = {row["learnt_from"] for row in same}
        found.append(same[0] | averages | {"learnt_from": f"mean of {len(atlases)} atlases", "note": note})
    return found


def _train(arguments: argparse.Namespace, chosen: list[str], flags: list[str]) -> str:
    """Plan and train; says how long both took."""
    planned, _ = _timed(lambda: plan.main(["-d", arguments.d, "-f", arguments.fold, *chosen, *flags[:4]]))
    options = ["--sam", arguments.sam, "--time_budget", f"{arguments.time_budget:.0f}s", *chosen]
    trained, _ = _timed(lambda: train.main([arguments.d, arguments.fold, *options, *flags, *arguments.train]))
    return f"plan {planned:.0f} s, train and validate {trained:.0f} s"


def _iterations(plan: Plan) -> int:
    """Training steps of the stages without a teacher."""
    return plan.joint.iterations + plan.rounds * plan.mutual.iterations


def _rrlsam_rows(
    dataset: Dataset, arguments: argparse.Namespace, model: Path, scans: Sequence[Scan], note: str, folder: Path
) -> list[Row]:
    output = folder / "predictions" / dataset.name
    inputs = link_files((path for scan in scans for path in scan.images), folder / "inputs" / dataset.name)
    flags = ["-m", str(model), "-f", arguments.fold, "--save_registration"]
    predicted, _ = _timed(lambda: predict.main(["-i", str(inputs), "-o", str(output), *flags]))
    folds, rows = worst_fold_percent(output), []
    for name, masks in (("registration", output / REGISTRATION_FOLDER), ("AP segmentation", output)):
        scores = score(scans, masks, dataset)
        if masks == output:
            note += f"; predicted and true Dice correlate with r = {confidence_correlation(output, scores):.2f}"
        rows.append(make_row(f"rrlsam {name}", scores, arguments.without, seconds=predicted, note=note, folds=folds))
    return rows


def _peer_rows(
    peer: str, dataset: Dataset, arguments: argparse.Namespace, atlas: str, scans: Sequence[Scan], folder: Path
) -> list[Row]:
    rows = []
    for seed in SEEDS.get(peer, (1,)):
        masks = folder / peer / dataset.name / f"seed_{seed}"
        seconds = _peer(peer, dataset.scan(atlas), scans, masks, seed)
        note = f"same atlas, seed {seed}"
        scores = score(scans, masks, dataset)
        rows.append(make_row(PEERS[peer].title, scores, arguments.without, seconds=seconds, note=note))
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="number or name of the data set")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--atlas", nargs="+", default=[AUTO], help="atlases, each in turn; auto: the best to serve")
    parser.add_argument("--shots", nargs="+", type=count, default=[1], help="numbers of labels, each in turn")
    parser.add_argument("--time_budget", type=duration, default="20m")
    parser.add_argument("--sam", default="none")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="run these too")
    parser.add_argument(
        "--only_peers", action="store_true", help="run nothing but the peers, beside a model that is there"
    )
    parser.add_argument("--trained", action="store_true", help="train nothing, predict with the models that are there")
    parser.add_argument("--test", action="store_true", help="score imagesTs against labelsTs, not the validation cases")
    parser.add_argument("--without", nargs="*", default=[], help="structures left out of the second Dice column")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options of rrlsam_train")
    arguments = parser.parse_args()
    if arguments.only_peers and not arguments.peers:
        parser.error("--only_peers needs --peers")
    return arguments


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    began = time.monotonic()
    code = work()
    if code:
        raise SystemExit(code)
    return time.monotonic() - began, code


def _peer(peer: str, atlas: Scan, scans: Sequence[Scan], folder: Path, seed: int) -> float:
    """Warp the atlas label by a peer with a fixed seed; seconds in all."""
    if atlas.label is None:
        raise SystemExit("the atlas has no label")
    began, ending = time.monotonic(), ending_of(atlas.label)
    for scan in scans:
        pair = Pair(fixed=scan.images[0], moving=atlas.images[0], label=atlas.label, threads=usable_cores(), seed=seed)
        warped, _ = PEERS[peer].run(pair)
        write_like(warped, read_image(scan.images[0]), folder / f"{scan.case}{ending}")
    return time.monotonic() - began


if __name__ == "__main__":
    main()
