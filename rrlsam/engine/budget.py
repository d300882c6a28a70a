"""Iteration counts that make a training last as long as it may, found by timing a few steps of each kind."""

import dataclasses
import logging

from rrlsam.engine.fields import seconds_per_field
from rrlsam.engine.fit import Run, calibrate
from rrlsam.engine.schedule import scale_iterations
from rrlsam.errors import BadInputError
from rrlsam.plan import Plan
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.state import Stage

LARGEST_REFINING_SHARE = 0.25
"""Of a time budget; the rest is for training steps."""
_log = logging.getLogger(__name__)


def fit_to_budget(run: Run, stages: tuple[Stage, ...], budget_s: float) -> Plan:
    """The run's plan with all stages made longer or shorter alike."""
    kinds = {(type(stage), stage.settings): stage for stage in stages}  # rounds of one stage take equally long
    seconds = {kind: calibrate(stage, run) for kind, stage in kinds.items()}
    planned = sum(stage.settings.iterations * seconds[type(stage), stage.settings] for stage in stages)
    if planned == 0:
        raise BadInputError(
            f"{run.folder}: the plan has no iterations that a time budget could make more or fewer; give it some"
        )
    refinement, refining_s = _refinement_within(LARGEST_REFINING_SHARE * budget_s, run, stages)
    plan = scale_iterations(run.plan, (budget_s - refining_s) / planned)
    distils = any(isinstance(stage, DistilSam) for stage in stages)
    counts = (plan.distillation.iterations if distils else 0, plan.joint.iterations, plan.mutual.iterations)
    _log.info("time budget %.0f s: %d, %d and %d x %d iterations", budget_s, *counts, plan.rounds)
    _log.info("%d iterations refine the field of each scan before a round", refinement)
    return dataclasses.replace(plan, time_budget_s=budget_s, refinement_iterations=refinement)


def _refinement_within(limit_s: float, run: Run, stages: tuple[Stage, ...]) -> tuple[int, float]:
    """Steps of the refinement of a scan's field that keep within a limit, and the seconds that all of it takes."""
    rounds = sum(stage.refinement_iterations > 0 for stage in stages)
    wanted = run.plan.refinement_iterations
    if not rounds or not wanted:
        return wanted, 0.0
    seconds = seconds_per_field(run, wanted) * len(run.batches.registered) * rounds
    share = min(1.0, limit_s / seconds)
    return max(1, round(wanted * share)), seconds * share
