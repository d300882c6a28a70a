"""rrlsam_register: register scans, with a trained model or by optimisation alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import (
    add_device_option,
    add_progress_option,
    add_repair_options,
    make_parser,
    number_of_steps,
    partial_failure,
    repairs_of,
    run,
)
from rrlsam.cli.model_options import add_model_options, chosen_model, refuse_unused
from rrlsam.errors import UsageError
from rrlsam.settings import METRICS, OPTIMISATION_ITERATIONS, QUICK_ITERATIONS
from rrlsam.system.files import require_writable
from rrlsam.system.safe_output import require_safe_folder

if TYPE_CHECKING:
    from rrlsam.engine.device import Device
    from rrlsam.registration.register_scans import Moving, Registrar
    from rrlsam.scans.inputs import InputScan


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_register",
        "Register a model's atlas to every scan of a folder, or one scan to others; with -moving and no model, by "
        "optimisation alone.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-i", type=Path, metavar="IN", help="fixed scans: a folder of scans CASE_0000.*, or one file")
    which.add_argument(
        "-fixed",
        type=Path,
        metavar="FILE",
        help="one fixed scan, instead of -i; a bad one ends the command with its own exit code",
    )
    parser.add_argument("-o", type=Path, required=True, metavar="OUT", help="folder for transforms and warped scans")
    parser.add_argument("-moving", type=Path, metavar="FILE", help="the scan to bring to the fixed ones")
    parser.add_argument("-moving_labels", type=Path, metavar="FILE", help="its labels, to be warped along")
    parser.add_argument("-f", metavar="FOLD", help="fold of the model, if several are trained")
    add_model_options(parser)
    parser.add_argument(
        "-metric", choices=METRICS, help="without a model: scans of one kind (lncc, default) or of two (mind)"
    )
    parser.add_argument(
        "--refine",
        type=number_of_steps,
        metavar="N",
        help="steps at each resolution by which a field is optimised for its pair "
        f"(default: {QUICK_ITERATIONS} with a model, {OPTIMISATION_ITERATIONS} without)",
    )
    parser.add_argument(
        "--segment",
        action="store_true",
        help="let the model's segmentation of each scan help to bring the atlas to it (--refine then as in prediction)",
    )
    parser.add_argument("--learn2reg", action="store_true", help="write fields for the Learn2Reg evaluators too")
    parser.add_argument("--l2r_short_names", action="store_true", help="named disp_FFFF_MMMM.nii.gz (with --learn2reg)")
    add_device_option(parser)
    add_repair_options(parser)
    add_progress_option(parser)
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    by_model = arguments.moving is None or any(v is not None for v in (arguments.m, arguments.d))
    if by_model and arguments.metric is not None:
        raise UsageError("-metric is for optimisation without a model; a model was trained with its own")
    if arguments.moving is None and (arguments.moving_labels is not None or arguments.learn2reg):
        raise UsageError("-moving_labels and --learn2reg need -moving: the atlas of a model has a grid of its own")
    if arguments.segment and (arguments.moving is not None or arguments.refine in (0, 1)):
        raise UsageError("--segment is for a model's own atlas, without -moving, and for --refine 2 or more")
    if not by_model:
        refuse_unused(arguments, "tr", "p", "f", because="-moving alone uses no model; name one with -d or -m")
    if arguments.l2r_short_names and not arguments.learn2reg:
        raise UsageError("--l2r_short_names needs --learn2reg")

    from rrlsam.cli.reporting import progress_of
    from rrlsam.system.allocator import keep_freed_memory

    keep_freed_memory()
    require_safe_folder(arguments.o, scans=arguments.i)
    task = _by_model(arguments) if by_model else _by_optimisation(arguments)

    from rrlsam.registration.register_scans import Output, register_scan, register_scans

    scans = _fixed_scans(arguments, task)
    require_writable(arguments.o)
    if task.brings_atlas:
        _save_atlas(arguments.o, task.moving)
    output = Output(folder=arguments.o, learn2reg=arguments.learn2reg, short_names=arguments.l2r_short_names)
    if arguments.fixed is not None:
        done, failures = (register_scan(scans[0], task.moving, task.registrar, output),), ()
    else:
        report = register_scans(scans, task.moving, task.registrar, output, progress_of(arguments))
        done, failures = report.registered, report.failures
    for scan in done:
        print(
            f"{scan.fixed_name}: {scan.seconds:.1f} s, {scan.jacobian.fold_percent:.4f} % folded, "
            f"inverse within {scan.inverse_error_99_vox:.2f} voxels for 99 %"
        )
    if failures:
        raise partial_failure([f"{failure.case}: {failure.reason}" for failure in failures], len(scans))
    print(f"{len(scans)} registered in {arguments.o}")
    return 0


def _fixed_scans(arguments: argparse.Namespace, task: _Task) -> Sequence[InputScan]:
    """What -i or -fixed names; UsageError if registering would write over any of the inputs."""
    from rrlsam.registration.learn2reg import require_distinct_names
    from rrlsam.registration.register_scans import require_safe_registration
    from rrlsam.scans.inputs import find_inputs

    if arguments.fixed is not None:
        scans: Sequence[InputScan] = (_single(arguments, arguments.fixed, "-fixed", task.channels),)
    else:
        scans = find_inputs(arguments.i, task.channels, repairs_of(arguments))
    inputs = [*(path for scan in scans for path in scan.images), arguments.moving, arguments.moving_labels]
    cases = [scan.case for scan in scans]
    require_safe_registration(arguments.o, cases, inputs, writes_atlas=task.brings_atlas)
    if arguments.learn2reg:
        require_distinct_names(cases, task.moving.name, short=arguments.l2r_short_names)
    return scans


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is brought to the fixed scans, and how."""

    registrar: Registrar
    moving: Moving
    channels: int
    brings_atlas: bool = False
    """Whether the moving scan is the model's own atlas, which the user may not have as a file."""


def _by_model(arguments: argparse.Namespace) -> _Task:
    """Register with a trained model; its atlas, unless -moving names another scan."""
    path = _checkpoint(arguments)

    from rrlsam.models.checkpoint import load_checkpoint
    from rrlsam.prediction.by_model import ByModel, atlas_of
    from rrlsam.prediction.inference import Model

    model = Model(load_checkpoint(path), _device(arguments))
    atlas, channels = atlas_of(model), len(model.plan.channel_names)
    usual = model.plan.prediction_refinement_iterations if arguments.segment else QUICK_ITERATIONS
    steps = usual if arguments.refine is None else arguments.refine
    method = f"model {path.parent.parent.name}, {path.parent.name}" + ", with segmentation" * arguments.segment
    if arguments.segment and not (model.segmentation_can_help and steps > 1):
        raise UsageError(f"{path}: --segment needs an atlas whose label has no ignored voxels, and a refinement")
    registrar = ByModel(model=model, iterations=steps, method=method, atlas=atlas, segment=arguments.segment)
    if arguments.moving is not None:
        return _Task(registrar=registrar, moving=_moving(arguments, channels), channels=channels)
    return _Task(registrar=registrar, moving=atlas, channels=channels, brings_atlas=True)


def _by_optimisation(arguments: argparse.Namespace) -> _Task:
    """Register -moving by optimisation alone."""
    from rrlsam.registration.register_scans import ByOptimisation
    from rrlsam.scans.inputs import count_channels

    steps = OPTIMISATION_ITERATIONS if arguments.refine is None else arguments.refine
    registrar = ByOptimisation(metric=arguments.metric or METRICS[0], iterations=steps, device=_device(arguments))
    channels = count_channels(arguments.moving, arguments.fixed or arguments.i)
    return _Task(registrar=registrar, moving=_moving(arguments, channels), channels=channels)


def _device(arguments: argparse.Namespace) -> Device:
    from rrlsam.engine.device import choose_device

    device = choose_device(arguments.device)
    print(device.reason)
    return device


def _checkpoint(arguments: argparse.Namespace) -> Path:
    """The one fold to register with."""
    trained = chosen_model(arguments)
    first, *others = trained.checkpoints(None if arguments.f is None else [arguments.f])
    if others:
        raise UsageError(f"{trained.folder}: folds {', '.join(trained.folds)} are trained; choose one with -f")
    return first


def _save_atlas(folder: Path, atlas: Moving) -> None:
    """The moving scan of all transforms, for the eye and for other tools."""
    from rrlsam.registration.register_scans import write_channels
    from rrlsam.registration.transform_files import DESCRIPTION_ENDING
    from rrlsam.scans.volume import write_image
    from rrlsam.system.own_results import has_own_results, own_results

    there = [path.name for path in folder.glob("atlas*.nii.gz")] if folder.is_dir() else []
    if there and not (list(folder.glob(f"*{DESCRIPTION_ENDING}")) or has_own_results(folder)):
        raise UsageError(f"-o {folder}: {there[0]} is not of a registration; give a folder of its own")
    with own_results(folder, "atlas") as new:
        write_channels(atlas.image, new, "atlas")
        if atlas.labels is not None:
            write_image(atlas.labels, new / "atlas_labels.nii.gz")


def _moving(arguments: argparse.Namespace, channels: int) -> Moving:
    from rrlsam.registration.register_scans import read_moving

    return read_moving(_single(arguments, arguments.moving, "-moving", channels), arguments.moving_labels)


def _single(arguments: argparse.Namespace, given: Path, option: str, channels: int) -> InputScan:
    from rrlsam.scans.inputs import find_inputs

    scans = find_inputs(given, channels, repairs_of(arguments))
    if len(scans) != 1:
        raise UsageError(f"{given}: holds {len(scans)} scans; {option} takes one file")
    return scans[0]
