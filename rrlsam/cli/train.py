"""rrlsam_train: learn from one label."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import (
    Parser,
    add_atlas_options,
    add_device_option,
    add_folder_options,
    add_progress_option,
    atlas_names,
    configuration,
    count,
    duration,
    folder_name,
    make_parser,
    run,
    seed,
    workspace_of,
)
from rrlsam.errors import UsageError
from rrlsam.settings import ABLATIONS, DEFAULT_PLANS, SAM_AXES


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    return run(_work, _parser(), argv)


def _parser() -> Parser:
    parser = make_parser("rrlsam_train", "Train on one labelled scan and many unlabelled ones.")
    parser.add_argument("dataset", metavar="DATASET", help="number or name of the data set")
    parser.add_argument(
        "fold",
        nargs="+",
        action=_Fold,
        metavar="FOLD",
        help="0 to 4 (nnU-Net's split), or all; nnU-Net's 3d_fullres may stand before it",
    )
    parser.add_argument(
        "-tr", default="default", metavar="TRAINER", help="trainer, by name or as module:Class (default: default)"
    )
    parser.add_argument(
        "-p",
        type=folder_name,
        default=DEFAULT_PLANS,
        metavar="PLANS",
        help=f"name of the plans (default {DEFAULT_PLANS})",
    )
    add_atlas_options(parser)
    parser.add_argument(
        "--sam",
        metavar="MODEL",
        help="vit_b (default; downloaded once), vit_l, vit_h, a file of weights, or none: no distillation",
    )
    parser.add_argument("--sam_axes", choices=SAM_AXES, help="axis of the slices that SAM sees (default: the plan's)")
    parser.add_argument(
        "--general_encoder", type=Path, metavar="FILE", help="start from this encoder, made by rrlsam_distill"
    )
    parser.add_argument(
        "--time_budget",
        type=duration,
        metavar="TIME",
        help="training time, such as 90s, 20m or 8h (default: the plan's)",
    )
    parser.add_argument("--iterations", type=count, metavar="N", help="iterations of every stage, overriding the plan")
    parser.add_argument(
        "--ablate", action="append", default=[], choices=ABLATIONS, help="leave out or replace a part; repeatable"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of weights and of every random draw (default 0)"
    )
    parser.add_argument("--c", action="store_true", help="continue an interrupted training, exactly")
    parser.add_argument("--val", action="store_true", help="only score a finished training on its held-out cases again")
    parser.add_argument(
        "--npz", action="store_true", help="keep the class probabilities of the held-out cases too, as CASE.npz"
    )
    parser.add_argument("--overwrite", action="store_true", help="train anew although there are results")
    parser.add_argument("-num_gpus", type=int, choices=(1,), default=1, help="one GPU is what a training uses")
    add_device_option(parser)
    add_progress_option(parser)
    add_folder_options(parser, "raw", "preprocessed", "results")
    return parser


class _Fold(argparse.Action):
    """Takes FOLD, or nnU-Net's CONFIG and FOLD."""

    def __call__(self, parser, namespace, values, option_string=None):  # pyright: ignore[reportMissingParameterType]
        """Check the configuration, keep the fold."""
        *before, fold = given = [str(value) for value in values or ()]
        if len(before) > 1:
            parser.error(f"one FOLD is expected, found {' '.join(given)}")
        try:
            for name in before:
                configuration(name)
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, fold)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.val and (arguments.c or arguments.overwrite):
        raise UsageError("--val only scores; it goes neither with --c nor with --overwrite")
    if arguments.sam == "none" and arguments.sam_axes and arguments.general_encoder is None:
        raise UsageError(f"--sam_axes {arguments.sam_axes}: nothing sees slices with --sam none; leave it out")

    from rrlsam.cli.reporting import progress_of
    from rrlsam.scans.dataset import find_dataset, load_dataset
    from rrlsam.settings import TrainingOptions
    from rrlsam.system.allocator import keep_freed_memory

    keep_freed_memory()
    workspace = workspace_of(arguments)
    dataset = load_dataset(find_dataset(workspace.root("raw"), arguments.dataset))
    options = TrainingOptions(
        fold=arguments.fold,
        trainer=arguments.tr,
        plans_name=arguments.p,
        atlases=atlas_names(arguments.atlas),
        shots=arguments.shots,
        sam=arguments.sam,
        sam_axes=arguments.sam_axes and SAM_AXES[arguments.sam_axes],
        general_encoder=arguments.general_encoder,
        time_budget_s=arguments.time_budget,
        iterations=arguments.iterations,
        ablations=frozenset(arguments.ablate),
        seed=arguments.seed,
        validation_probabilities=arguments.npz,
        resume=arguments.c,
        overwrite=arguments.overwrite,
        device=arguments.device,
    )

    if arguments.val:
        from rrlsam.prediction.revalidate import revalidate

        print(revalidate(dataset, workspace, options, progress_of(arguments)))
        return 0

    from rrlsam.training import train

    print(train(dataset, workspace, options, progress_of(arguments)))
    return 0
