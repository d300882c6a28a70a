"""rrlsam_predict: segment (and register) scans with a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import (
    Parser,
    add_device_option,
    add_nnunet_options,
    add_progress_option,
    add_repair_options,
    configuration,
    count,
    make_parser,
    number_of_steps,
    partial_failure,
    repairs_of,
    run,
)
from rrlsam.cli.model_options import add_model_options, chosen_model
from rrlsam.errors import SHOWN, UsageError
from rrlsam.settings import FINAL, LATEST
from rrlsam.system.files import require_writable
from rrlsam.system.safe_output import require_safe_folder

if TYPE_CHECKING:
    from rrlsam.prediction.predict import Report
    from rrlsam.prediction.predicted import Options


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    return run(_work, _parser(), argv)


def _parser() -> Parser:
    parser = make_parser("rrlsam_predict", "Segment every scan of a folder, or one scan, with a trained model.")
    parser.add_argument("-i", type=Path, required=True, metavar="IN", help="folder of scans CASE_0000.*, or one file")
    parser.add_argument("-o", type=Path, required=True, metavar="OUT", help="folder for the masks")
    add_model_options(parser)
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds to average (default: all that are trained)")
    parser.add_argument("-c", type=configuration, metavar="CONFIG", help="nnU-Net's configuration: 3d_fullres only")
    parser.add_argument(
        "-chk",
        type=_checkpoint,
        default=FINAL,
        metavar="NAME",
        help=f"{FINAL} (default), or {LATEST} of a training that is under way",
    )
    parser.add_argument(
        "-num_parts", type=count, default=1, metavar="N", help="share the scans among N calls (default 1)"
    )
    parser.add_argument(
        "-part_id", type=number_of_steps, default=0, metavar="K", help="this call's part, 0 (default) to N - 1"
    )
    add_device_option(parser)
    parser.add_argument(
        "-step_size",
        type=_step_size,
        default=0.5,
        metavar="SHARE",
        help="step of the sliding window, in patches (default 0.5)",
    )
    parser.add_argument(
        "--disable_tta", action="store_true", help="do not average over turned and mirrored views: faster"
    )
    parser.add_argument(
        "--disable_evidence",
        action="store_true",
        help="do not correct the segmentation by the scan's own intensities: for scans with much that the atlas lacks",
    )
    parser.add_argument("--save_probabilities", action="store_true", help="write CASE.npz, as nnU-Net does")
    parser.add_argument(
        "--save_registration", action="store_true", help="write OUT/registration/, the warped atlas label"
    )
    parser.add_argument(
        "--refine",
        type=number_of_steps,
        metavar="N",
        help="steps by which the registration's field is refined for each scan; 0: the network's (default: as planned)",
    )
    parser.add_argument(
        "--continue_prediction",
        action="store_true",
        help="keep masks that were made of the same scan by the same model and settings and are whole",
    )
    add_repair_options(parser)
    add_progress_option(parser)
    add_nnunet_options(parser, flags=("--verbose", "--not_on_device"), numbers=("-npp", "-nps"))
    return parser


def _work(arguments: argparse.Namespace) -> int:
    if arguments.part_id >= arguments.num_parts:
        raise UsageError(f"-part_id {arguments.part_id}: with -num_parts {arguments.num_parts} it must be below that")
    require_safe_folder(arguments.o, scans=arguments.i)

    from rrlsam.cli.reporting import progress_of

    model = chosen_model(arguments, arguments.chk)
    checkpoints = model.checkpoints(arguments.f)
    require_writable(arguments.o)

    from rrlsam.engine.device import choose_device
    from rrlsam.prediction.predict import of_part, predict_scans, write_dataset_json
    from rrlsam.prediction.predicted import Ledger
    from rrlsam.prediction.segment import load_models
    from rrlsam.scans.inputs import find_inputs
    from rrlsam.system.allocator import keep_freed_memory
    from rrlsam.system.own_results import own_results

    keep_freed_memory()
    device = choose_device(arguments.device)
    print(device.reason)
    models = load_models(checkpoints, device, model.folder)
    plan = models[0].plan
    atlases = dict.fromkeys(m.atlas.case for m in models)
    print(f"{model.folder.name}, fold {', '.join(m.provenance.fold for m in models)}, atlas {', '.join(atlases)}")
    everything = find_inputs(arguments.i, len(plan.channel_names), repairs_of(arguments))
    scans = everything[arguments.part_id :: arguments.num_parts]
    options = _options(arguments)
    part = f"_part_{arguments.part_id}_of_{arguments.num_parts}" if arguments.num_parts > 1 else ""
    ledger = Ledger(arguments.o, checkpoints, options, resume=arguments.continue_prediction)
    report = predict_scans(scans, models, arguments.o, options, progress_of(arguments), ledger, part=part)
    failures = report.failures
    _tell_strange(report, arguments.o, part)
    if len(failures) < len(scans):
        with own_results(arguments.o, of_part("dataset.json", part)) as folder:
            write_dataset_json(plan, everything[0].ending, len(everything), folder)
    if failures:
        raise partial_failure([f"{case}: {reason}" for case, reason in failures.items()], len(scans))
    print(f"{len(scans)} masks in {arguments.o}")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    from rrlsam.prediction.predicted import Options

    return Options(
        save_probabilities=arguments.save_probabilities,
        save_registration=arguments.save_registration,
        average=not arguments.disable_tta,
        evidence=not arguments.disable_evidence,
        overlap=1.0 - arguments.step_size,
        refinement_iterations=arguments.refine,
    )


def _tell_strange(report: Report, output: Path, part: str) -> None:
    """Print the scans that are worth a look."""
    from rrlsam.prediction.predict import REPORT, of_part

    strange = [scan for scan in report.scans if scan.look_at and scan.failure is None]
    if strange:
        where = output / of_part(REPORT, part)
        print(f"worth a look ({len(strange)} of {len(report.scans)}; all in {where}):")
    for scan in strange[:SHOWN]:
        print(f"  {scan.case}: {'; '.join(scan.look_at[:5])}")


def _checkpoint(text: str) -> str:
    """nnU-Net's names end in .pth, ours in .pt; there is no best one, since nothing is chosen by validation."""
    name = text.removesuffix("h") if text.endswith(".pth") else text
    if name not in (FINAL, LATEST):
        raise argparse.ArgumentTypeError(f"{text!r} is not {FINAL} or {LATEST}")
    return name


def _step_size(text: str) -> float:
    value = float(text) if text.isascii() and text.replace(".", "", 1).isdigit() else 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return value
