"""Means, spreads and paired differences of the runs of benchmarks/distillation.py, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


HEADER = (
    "| arm | seeds | segmentation | registration | against | difference, segmentation | larger than its spread? "
    "| difference, registration | larger than its spread? | stage 1a's loss |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
TITLES = {
    "refined": "As `rrlsam_predict` works: the field of each scan refined",
    "network": "The network alone (`--refine 0`)",
}


def tables(trained: Sequence[TrainedArm]) -> list[str]:
    """One table for each way of prediction."""
    runs = {name: {one.seed: one for one in trained if one.arm == name} for name in ARMS}
    found = []
    for way, title in TITLES.items():
        rows = [_row(name, runs, way) for name in ARMS if runs[name]]
        found.append("\n".join([f"{title}:\n", HEADER, *rows, ""]))
    return found


def _row(name: str, runs: Mapping[str, Mapping[int, TrainedArm]], way: str) -> str:
    arm, own = ARMS[name], runs[name]
    seeds = sorted(own)
    cells = [arm.says, " ".join(map(str, seeds))]
    cells += [_mean([getattr(own[s].scores[way], kind) for s in seeds]) for kind in ("segmentation", "registration")]
    cells.append("" if arm.against == name else ARMS[arm.against].says)
    for kind in ("segmentation", "registration"):
        both = [s for s in seeds if s in runs[arm.against] and arm.against != name]
        pairs = [(own[s].scores[way], runs[arm.against][s].scores[way]) for s in both]
        cells += _difference([getattr(a, kind) - getattr(b, kind) for a, b in pairs])
    losses = [loss for one in own.values() if (loss := one.distillation) is not None]
    cells.append(" to ".join(f"{number:.4f}" for number in np.mean(losses, axis=0)) if losses else "")
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} +- {_spread(values):.4f}"


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, nan for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _difference(differences: Sequence[float]) -> list[str]:
    """Mean and spread of the paired differences, and the verdict; three seeds are the least that have one."""
    if not differences:
        return ["", ""]
    mean, spread = float(np.mean(differences)), _spread(differences)
    verdict = "too few seeds" if len(differences) < 3 else "yes" if abs(mean) > spread else "no"
    return [f"{mean:+.4f} +- {spread:.4f}", verdict]
