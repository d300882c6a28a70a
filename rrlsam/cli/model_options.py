"""Which trained model a command uses: the options, and the model they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rrlsam.cli.common import add_folder_options, workspace_of
from rrlsam.errors import UsageError

if TYPE_CHECKING:
    from rrlsam.models.choose import TrainedModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add -m, -d, -tr, -p and --results."""
    parser.add_argument("-m", type=Path, metavar="FOLDER", help="the model's folder, instead of -d, -tr and -p")
    parser.add_argument("-d", metavar="DATASET", help="data set of the model, number or name")
    parser.add_argument("-tr", metavar="TRAINER", help="trainer of the model")
    parser.add_argument("-p", metavar="PLANS", help="plans of the model")
    add_folder_options(parser, "results")


def refuse_unused(arguments: argparse.Namespace, *names: str, because: str) -> None:
    """UsageError if options were given that have no effect."""
    if given := [f"-{name}" for name in names if getattr(arguments, name) is not None]:
        raise UsageError(f"leave out {', '.join(given)}: {because}")


def chosen_model(arguments: argparse.Namespace, checkpoint: str | None = None) -> TrainedModel:
    """The model that the options mean; `checkpoint`: name of another one than the final."""
    from rrlsam.models.choose import FINAL, require_model, select_model

    name = checkpoint or FINAL

    if arguments.m is None:
        results = workspace_of(arguments).root("results")
        return select_model(results, dataset=arguments.d, trainer=arguments.tr, plans=arguments.p, checkpoint=name)
    refuse_unused(arguments, "d", "tr", "p", because="-m names the model already")
    return require_model(arguments.m, name)
