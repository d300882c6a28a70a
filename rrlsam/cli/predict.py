"""rrlsam_predict: segment (and register) scans with a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import add_folder_options, make_parser, run, workspace_of
from rrlsam.errors import PARTIAL_FAILURE_EXIT_CODE, UsageError
from rrlsam.settings import DEVICES


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser("rrlsam_predict", "Segment every scan of a folder, or one scan, with a trained model.")
    parser.add_argument("-i", type=Path, required=True, metavar="IN", help="folder of scans CASE_0000.*, or one file")
    parser.add_argument("-o", type=Path, required=True, metavar="OUT", help="folder for the masks")
    parser.add_argument("-m", type=Path, metavar="FOLDER", help="the model's folder, instead of -d, -tr and -p")
    parser.add_argument("-d", metavar="DATASET", help="data set of the model, number or name")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds to average (default: all that are trained)")
    parser.add_argument("-tr", metavar="TRAINER", help="trainer of the model")
    parser.add_argument("-p", metavar="PLANS", help="plans of the model")
    parser.add_argument("-device", default="auto", choices=DEVICES, help="where to compute")
    parser.add_argument("-step_size", type=_step_size, default=0.5, metavar="SHARE", help="step of the sliding window")
    parser.add_argument("--disable_tta", action="store_true", help="do not average over turned views: faster")
    parser.add_argument("--save_probabilities", action="store_true", help="write CASE.npz, as nnU-Net does")
    parser.add_argument(
        "--save_registration", action="store_true", help="write OUT/registration/, the warped atlas label"
    )
    parser.add_argument(
        "--refine",
        type=_count,
        metavar="N",
        help="steps by which the registration's field is refined for each scan; 0: the network's (default: as planned)",
    )
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar")
    add_folder_options(parser, "results")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.cli.reporting import progress_of, start_logging
    from rrlsam.models import read_model, select_model

    start_logging()
    if arguments.m is not None:
        model = read_model(arguments.m)
        if model is None:
            raise UsageError(f"{arguments.m}: holds no finished fold (fold_*/checkpoint_final.pt)")
    else:
        results = workspace_of(arguments).root("results")
        model = select_model(results, dataset=arguments.d, trainer=arguments.tr, plans=arguments.p)
    checkpoints = model.checkpoints(arguments.f)

    from rrlsam.checkpoint import load_checkpoint
    from rrlsam.engine.device import choose_device
    from rrlsam.inference import Model
    from rrlsam.predict import Options, find_inputs, predict_scans, write_dataset_json

    device = choose_device(arguments.device)
    print(device.reason)
    models = [Model(load_checkpoint(path), device) for path in checkpoints]
    plan = models[0].plan
    print(f"{model.folder.name}, fold {', '.join(m.provenance.fold for m in models)}, atlas {plan.atlases[0]}")
    scans = find_inputs(arguments.i, len(plan.channel_names))
    options = Options(
        save_probabilities=arguments.save_probabilities,
        save_registration=arguments.save_registration,
        average=not arguments.disable_tta,
        overlap=1.0 - arguments.step_size,
        refinement_iterations=arguments.refine,
    )
    failures = predict_scans(scans, models, arguments.o, options, progress_of(arguments)).failures
    if len(failures) < len(scans):
        write_dataset_json(plan, scans[0].ending, len(scans), arguments.o)
    if failures:
        first = "; ".join(list(failures.values())[:10])
        raise PartialFailure(f"{len(failures)} of {len(scans)} scans failed: {first}")
    print(f"{len(scans)} masks in {arguments.o}")
    return 0


class PartialFailure(UsageError):
    """Some scans failed; the others are done."""

    exit_code = PARTIAL_FAILURE_EXIT_CODE


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _step_size(text: str) -> float:
    value = float(text) if text.replace(".", "", 1).isdigit() else 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return value
