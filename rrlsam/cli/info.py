"""rrlsam_info: how large a model is, and what it was made from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import make_parser, run
from rrlsam.cli.model_options import add_model_options, chosen_model, refuse_unused

if TYPE_CHECKING:
    from rrlsam.models.model_size import ModelSize
    from rrlsam.plan import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser("rrlsam_info", "Count the parameters of a trained model or of a plan, and what a scan costs.")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan.json, instead of a trained model")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    plan = _plan(arguments)

    from rrlsam.models.model_size import model_size
    from rrlsam.system.jsonio import to_json

    size = model_size(plan)
    print(to_json(size).rstrip() if arguments.json else "\n".join(_lines(size)))
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.plan is not None:
        refuse_unused(arguments, "m", "d", "tr", "p", because="--plan names a plan instead of a trained model")
        from rrlsam.plan import Plan, check_plan
        from rrlsam.system.jsonio import load_json

        return check_plan(load_json(Plan, arguments.plan), source=str(arguments.plan))
    model = chosen_model(arguments)

    from rrlsam.models.checkpoint import load_checkpoint

    return load_checkpoint(model.checkpoints()[0]).plan


def _lines(size: ModelSize) -> list[str]:
    return [
        f"teacher (SAM-Base's image encoder)  {size.teacher:>13,} parameters",
        f"light encoder, each of two          {size.light_encoder:>13,} parameters, {size.ratio:.2%} of the teacher",
        f"general decoder                     {size.general_decoder:>13,} parameters",
        f"registration decoder                {size.registration_decoder:>13,} parameters",
        f"auto-prompting decoder              {size.auto_prompt_decoder:>13,} parameters",
        f"whole model at prediction           {size.prediction:>13,} parameters; the teacher is not needed",
        f"networks, a scan                    {size.flops_per_scan / 1e9:>13,.1f} GFLOP in {size.views_per_scan} views",
        f"weights and activations             {size.peak_memory_mb:>13,.0f} MB in float32",
    ]
