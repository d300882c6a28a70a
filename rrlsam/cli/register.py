"""rrlsam_register: register scans, with a trained model or by optimisation alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import make_parser, run
from rrlsam.cli.model_options import add_model_options, chosen_model, number_of_steps
from rrlsam.errors import PartialFailure, UsageError
from rrlsam.settings import DEVICES, METRICS, OPTIMISATION_ITERATIONS, QUICK_ITERATIONS

if TYPE_CHECKING:
    from rrlsam.engine.device import Device
    from rrlsam.inference import Model
    from rrlsam.register_scans import Moving


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_register",
        "Register a model's atlas to every scan of a folder, or one scan to others; with -moving and no model, by "
        "optimisation alone.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-i", type=Path, metavar="IN", help="fixed scans: a folder of scans CASE_0000.*, or one file")
    which.add_argument("-fixed", type=Path, metavar="FILE", help="one fixed scan; the same as -i FILE")
    parser.add_argument("-o", type=Path, required=True, metavar="OUT", help="folder for transforms and warped scans")
    parser.add_argument("-moving", type=Path, metavar="FILE", help="the scan to bring to the fixed ones")
    parser.add_argument("-moving_labels", type=Path, metavar="FILE", help="its labels, to be warped along")
    parser.add_argument("-f", metavar="FOLD", help="fold of the model, if several are trained")
    add_model_options(parser)
    parser.add_argument("-metric", choices=METRICS, help="without a model: scans of one kind (lncc) or of two (mind)")
    parser.add_argument(
        "--refine",
        type=number_of_steps,
        metavar="N",
        help="steps at each resolution by which a field is optimised for its pair "
        f"(default: {QUICK_ITERATIONS} with a model, {OPTIMISATION_ITERATIONS} without)",
    )
    parser.add_argument("--learn2reg", action="store_true", help="write fields for the Learn2Reg evaluators too")
    parser.add_argument("--l2r_short_names", action="store_true", help="named disp_FFFF_MMMM.nii.gz (with --learn2reg)")
    parser.add_argument("-device", default="auto", choices=DEVICES, help="where to compute")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress bar")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    by_model = arguments.moving is None or any(v is not None for v in (arguments.m, arguments.d))
    if by_model and arguments.metric is not None:
        raise UsageError("-metric is for optimisation without a model; a model was trained with its own")
    if arguments.moving is None and (arguments.moving_labels is not None or arguments.learn2reg):
        raise UsageError("-moving_labels and --learn2reg need -moving: the atlas of a model has a grid of its own")
    if arguments.l2r_short_names and not arguments.learn2reg:
        raise UsageError("--l2r_short_names needs --learn2reg")

    from rrlsam.cli.reporting import progress_of, start_logging

    start_logging()
    checkpoint = _checkpoint(arguments) if by_model else None

    from rrlsam.engine.device import choose_device
    from rrlsam.predict import count_channels, find_inputs
    from rrlsam.register_scans import (
        ByModel,
        ByOptimisation,
        Output,
        atlas_of,
        register_scan,
        register_scans,
    )

    device = choose_device(arguments.device)
    print(device.reason)
    given: Path | None = arguments.moving
    if checkpoint is not None:
        model = _load(checkpoint, device)
        atlas = atlas_of(model)
        name = f"model {checkpoint.parent.parent.name}, {checkpoint.parent.name}"
        steps = QUICK_ITERATIONS if arguments.refine is None else arguments.refine
        registrar = ByModel(model=model, iterations=steps, method=name, atlas=atlas)
        channels = len(model.plan.channel_names)
        moving = atlas if given is None else _moving(given, channels, arguments.moving_labels)
        if given is None:
            _save_atlas(arguments.o, atlas)
    elif given is not None:
        steps = OPTIMISATION_ITERATIONS if arguments.refine is None else arguments.refine
        registrar = ByOptimisation(metric=arguments.metric or "lncc", iterations=steps, device=device)
        channels = count_channels(given)
        moving = _moving(given, channels, arguments.moving_labels)
    else:
        raise UsageError("-moving is needed without a model")
    scans = find_inputs(arguments.i or arguments.fixed, channels)
    output = Output(folder=arguments.o, learn2reg=arguments.learn2reg, short_names=arguments.l2r_short_names)
    if arguments.fixed is not None:
        done, failures = [register_scan(scan, moving, registrar, output) for scan in scans[:1]], ()
    else:
        report = register_scans(scans, moving, registrar, output, progress_of(arguments))
        done, failures = report.registered, report.failures
    for scan in done:
        print(
            f"{scan.fixed_name}: {scan.seconds:.1f} s, {scan.jacobian.fold_percent:.4f} % folded, "
            f"inverse within {scan.inverse_error_99_vox:.2f} voxels for 99 %"
        )
    if failures:
        first = "; ".join(f"{failure.case}: {failure.reason}" for failure in failures[:10])
        raise PartialFailure(f"{len(failures)} of {len(scans)} scans failed: {first}")
    print(f"{len(scans)} registered in {arguments.o}")
    return 0


def _checkpoint(arguments: argparse.Namespace) -> Path:
    """The one fold to register with."""
    trained = chosen_model(arguments)
    first, *others = trained.checkpoints(None if arguments.f is None else [arguments.f])
    if others:
        raise UsageError(f"{trained.folder}: folds {', '.join(trained.folds)} are trained; choose one with -f")
    return first


def _load(checkpoint: Path, device: Device) -> Model:
    from rrlsam.checkpoint import load_checkpoint
    from rrlsam.inference import Model

    return Model(load_checkpoint(checkpoint), device)


def _save_atlas(folder: Path, atlas: Moving) -> None:
    """The moving scan of all transforms, for the eye and for other tools."""
    from rrlsam.register_scans import write_channels
    from rrlsam.volume import write_image

    write_channels(atlas.image, folder, "atlas")
    if atlas.labels is not None:
        write_image(atlas.labels, folder / "atlas_labels.nii.gz")


def _moving(given: Path, channels: int, labels: Path | None) -> Moving:
    from rrlsam.predict import find_inputs
    from rrlsam.register_scans import read_moving

    scans = find_inputs(given, channels)
    if len(scans) != 1:
        raise UsageError(f"{given}: holds {len(scans)} scans; -moving takes one file")
    return read_moving(scans[0], labels)
