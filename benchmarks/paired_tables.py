"""Means, spreads and paired differences of the runs of benchmarks/distillation.py, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from arms import ARMS

from rrlsam.system.jsonio import record


@record
class Setting:
    """What all arms share; one folder of work holds runs of one setting."""

    teacher: str
    scans: int
    stride: int
    distillation: int
    joint: int
    mutual: int
    rounds: int
    refinement: int
    code: str
    """Hash of the package's sources: runs of different ones are no pairs."""


@record
class Scores:
    """Mean Dice over structures and test scans."""

    segmentation: float
    registration: float


@record
class TrainedArm:
    """One run."""

    arm: str
    seed: int
    scores: dict[str, Scores]
    """By the way of prediction."""
    distillation: tuple[float, float] | None
    """Loss at the beginning and at the end of stage 1a."""
    seconds: float
    cpu_seconds: float
    threads: int
    date: str


MEANS = (
    "| arm | seeds | segmentation | registration | segmentation, network alone | registration, network alone "
    "| loss of stage 1a |\n|---|---|---|---|---|---|---|"
)
DIFFERENCES = (
    "| arm | minus | segmentation | larger than its spread? | registration | larger than its spread? "
    "|\n|---|---|---|---|---|---|"
)
TITLES = {
    "refined": "Differences, as `rrlsam_predict` works (the field of each scan refined)",
    "network": "Differences, the network alone (`--refine 0`)",
}
KINDS = ("segmentation", "registration")
FEWEST_SEEDS = 3

Runs = dict[str, dict[int, TrainedArm]]
"""By arm and seed."""


def tables(trained: Sequence[TrainedArm]) -> list[str]:
    """Means of every arm, and differences for each way of prediction."""
    runs: Runs = {name: {one.seed: one for one in trained if one.arm == name} for name in ARMS}
    found = ["\n".join([MEANS, *(_means(name, own) for name, own in runs.items() if own), ""])]
    for way, title in TITLES.items():
        rows = [_difference(name, other, runs, way) for name in ARMS for other in ARMS[name].against]
        found.append("\n".join([f"{title}:\n", DIFFERENCES, *filter(None, rows), ""]))
    return found


def _means(name: str, own: dict[int, TrainedArm]) -> str:
    cells = [ARMS[name].says, " ".join(map(str, sorted(own)))]
    cells += [_mean([getattr(one.scores[way], kind) for one in own.values()]) for way in TITLES for kind in KINDS]
    losses = [loss for one in own.values() if (loss := one.distillation) is not None]
    cells.append(" to ".join(f"{number:.4f}" for number in np.mean(losses, axis=0)) if losses else "")
    return f"| {' | '.join(cells)} |"


def _difference(name: str, other: str, runs: Runs, way: str) -> str | None:
    """A row, or None where no seed has both arms."""
    both = sorted(set(runs[name]) & set(runs[other]))
    if not both:
        return None
    cells = [ARMS[name].says, ARMS[other].says]
    for kind in KINDS:
        pairs = [(runs[name][seed].scores[way], runs[other][seed].scores[way]) for seed in both]
        cells += _verdict([getattr(one, kind) - getattr(two, kind) for one, two in pairs])
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" +- {_spread(values):.4f}" if len(values) > 1 else "")


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds."""
    return float(np.std(values, ddof=1))


def _verdict(differences: Sequence[float]) -> list[str]:
    """Mean and spread of paired differences, and whether the one is larger than the other."""
    mean = float(np.mean(differences))
    if len(differences) < FEWEST_SEEDS:
        return [f"{mean:+.4f} (seeds: {len(differences)})", "too few seeds"]
    spread = _spread(differences)
    return [f"{mean:+.4f} +- {spread:.4f}", "yes" if abs(mean) > spread else "no"]
