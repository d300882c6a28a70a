"""rrlsam_plan_and_preprocess: check data sets, take their fingerprints, plan, preprocess, align."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rrlsam.cli.common import (
    add_atlas_options,
    add_folder_options,
    add_nnunet_options,
    add_progress_option,
    add_repair_options,
    atlas_names,
    configuration,
    duration,
    folder_name,
    make_parser,
    positive,
    repairs_of,
    run,
    workers,
    workspace_of,
)
from rrlsam.settings import DEFAULT_MEMORY_GB, DEFAULT_PLANS


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser("rrlsam_plan_and_preprocess", "Check a data set, plan the training and prepare the scans.")
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="number(s) or name(s) of data sets")
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds to plan for (default 0; all)")
    add_atlas_options(parser)
    parser.add_argument(
        "-pl",
        default="default",
        metavar="PLANNER",
        help="planner: default, low_memory, another by name, or module:Class",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=positive,
        default=DEFAULT_MEMORY_GB,
        metavar="GB",
        help=f"memory to plan for (default {DEFAULT_MEMORY_GB}, good for CPUs; with a GPU below what it has)",
    )
    parser.add_argument(
        "--time_budget",
        type=duration,
        metavar="TIME",
        help="training time, such as 90s, 20m or 8h (default: as many steps as planned)",
    )
    parser.add_argument(
        "-overwrite_plans_name",
        type=folder_name,
        default=DEFAULT_PLANS,
        metavar="NAME",
        help=f"name of the plans (default {DEFAULT_PLANS})",
    )
    parser.add_argument("--overwrite_plan", action="store_true", help="plan again even if the plan was edited")
    parser.add_argument("-np", type=workers, metavar="N", help="parallel workers (default: the cores that are there)")
    parser.add_argument(
        "-npfp", type=workers, metavar="N", help="parallel workers of check and fingerprint (default: -np)"
    )
    parser.add_argument("--clean", action="store_true", help="check all scans and take fingerprints anew")
    parser.add_argument("--no_pp", action="store_true", help="only check and plan; prepare no scans")
    parser.add_argument(
        "-c", nargs="+", type=configuration, metavar="CONFIG", help="nnU-Net's configurations: 3d_fullres only"
    )
    add_repair_options(parser)
    add_progress_option(parser, "--no_pbar")
    parser.add_argument(
        "--verify_dataset_integrity", action="store_true", help="accepted for nnU-Net's sake: it is always verified"
    )
    add_nnunet_options(parser, flags=("--verbose",))
    add_folder_options(parser, "raw", "preprocessed")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.cli.reporting import progress_of
    from rrlsam.planning.request import PlanningRequest, prepare_folds
    from rrlsam.scans.dataset import find_dataset, load_dataset

    workspace = workspace_of(arguments)
    request = PlanningRequest(
        planner=arguments.pl,
        gpu_memory_target_gb=arguments.gpu_memory_target,
        time_budget_s=arguments.time_budget,
        repairs=repairs_of(arguments),
    )
    for name in arguments.d:
        dataset = load_dataset(find_dataset(workspace.root("raw"), name))
        prepared = prepare_folds(
            dataset,
            workspace,
            arguments.f,
            plans_name=arguments.overwrite_plans_name,
            request=request,
            atlases=atlas_names(arguments.atlas),
            shots=arguments.shots,
            overwrite_plan=arguments.overwrite_plan,
            workers=arguments.np,
            fingerprint_workers=arguments.npfp,
            clean=arguments.clean,
            plan_only=arguments.no_pp,
            progress=progress_of(arguments),
        )
        for case, atlas in prepared.atlases.items():
            print(f"{dataset.name}: atlas {case}, plan {atlas.folder / 'plan.json'}")
    return 0
