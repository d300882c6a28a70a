"""rrlsam_distill: a general encoder from any folders of scans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import (
    add_device_option,
    add_progress_option,
    add_repair_options,
    count,
    make_parser,
    partial_failure,
    repairs_of,
    run,
    seed,
)
from rrlsam.errors import UsageError
from rrlsam.settings import DISTILLATION_LOSSES, SAM_AXES
from rrlsam.system.safe_output import require_safe_file, require_safe_folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_distill",
        "Distil SAM into a light 3-D encoder on scans without labels; rrlsam_train --general_encoder starts from it.",
    )
    parser.add_argument(
        "-i", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of scans CASE_0000.ENDING"
    )
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="file to write, such as encoder.pt")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan.json for whose network the encoder is made")
    parser.add_argument("-pl", default="default", metavar="PLANNER", help="planner, where no --plan is given")
    parser.add_argument(
        "-channel_name", default="MRI", metavar="NAME", help="what the scans show, such as CT, where no --plan is given"
    )
    parser.add_argument(
        "--sam", metavar="MODEL", help="vit_b (default; downloaded once), vit_l, vit_h or a file of weights"
    )
    parser.add_argument("--sam_axes", choices=SAM_AXES, help="axis of the slices that SAM sees (default: the plan's)")
    parser.add_argument("--loss", choices=DISTILLATION_LOSSES, help="distance to SAM's features (default: the plan's)")
    parser.add_argument("--iterations", type=count, metavar="N", help="steps (default: ten a scan, at least 500)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of weights and of the order of scans")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_device_option(parser)
    add_repair_options(parser)
    add_progress_option(parser)
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    import shutil

    from rrlsam.cli.reporting import progress_of
    from rrlsam.system.allocator import keep_freed_memory
    from rrlsam.system.lock import LOCK, sole_writer
    from rrlsam.teacher.distil import CASES, DistilOptions, distil
    from rrlsam.teacher.general_encoder import save_general_encoder

    keep_freed_memory()
    target: Path = arguments.o
    weights = None if arguments.sam is None else Path(arguments.sam)
    require_safe_file(target, (arguments.plan, weights), overwrite=arguments.overwrite)
    for folder in arguments.i:
        require_safe_folder(target.parent, scans=folder)
    if target.is_dir():
        raise UsageError(f"-o {target}: is a folder; give the name of a file")
    work = target.parent / f"{target.name}.work"
    found = {path.name for path in work.iterdir()} - {LOCK} if work.is_dir() else set()
    if found and CASES not in found:
        raise UsageError(f"{work}: is needed for preparing scans and holds something else; move it, or give another -o")
    options = DistilOptions(
        plan=arguments.plan,
        planner=arguments.pl,
        channel_name=arguments.channel_name,
        sam=arguments.sam,
        sam_axes=arguments.sam_axes and SAM_AXES[arguments.sam_axes],
        loss=arguments.loss,
        iterations=arguments.iterations,
        seed=arguments.seed,
        device=arguments.device,
        repairs=repairs_of(arguments),
    )
    with sole_writer(work):
        made = distil(arguments.i, work, options, progress_of(arguments))
        save_general_encoder(made.encoder, target)
        shutil.rmtree(work)
    provenance = made.encoder.provenance
    print(f"{target}: {provenance.scans} scans, {provenance.iterations} steps")
    print(f"{provenance.loss} distance to SAM's features: {made.loss_before:.4g}, at the end {made.loss_after:.4g}")
    if made.failures:
        reasons = [f"{case}: {reason}" for case, reason in made.failures.items()]
        raise partial_failure(reasons, provenance.scans + len(made.failures), "were left out")
    return 0
