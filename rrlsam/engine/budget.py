"""Iteration counts that make a training last as long as it may, found by timing a few steps of each kind."""

import dataclasses
import logging
import time
from collections.abc import Sequence

from rrlsam.engine.fields import draws_of, field_seconds
from rrlsam.engine.fit import Run, calibrate
from rrlsam.engine.schedule import scale_iterations
from rrlsam.errors import BadInputError
from rrlsam.plan import Plan
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.state import Stage

LARGEST_REFINING_SHARE = 0.25
"""Of a time budget; the rest is for training steps."""
SMALLEST_TRAINING_SHARE = 0.5
"""Of a time budget so short that timing and fields would take more than the rest: it is overrun then."""
FEWEST_STEPS, FEWEST_SCANS = 5, 16
"""Of the refinement of a field, and of a stage, before a stage looks at fewer scans, or a field gets fewer steps."""
_log = logging.getLogger(__name__)


def fit_to_budget(run: Run, stages: tuple[Stage, ...], budget_s: float) -> Plan:
    """The run's plan with all stages made longer or shorter alike."""
    began = time.monotonic()
    kinds = {(type(stage), stage.settings): stage for stage in stages}  # rounds of one stage take equally long
    seconds = {kind: calibrate(stage, run) for kind, stage in kinds.items()}
    planned = sum(stage.settings.iterations * seconds[type(stage), stage.settings] for stage in stages)
    if planned == 0:
        raise BadInputError(
            f"{run.folder}: the plan has no iterations that a time budget could make more or fewer; give it some"
        )
    refined = [stage for stage in stages if stage.refinement_iterations and draws_of(stage)]
    draws = [draws_of(stage) * budget_s / planned for stage in refined]
    refining = _refinement_within(LARGEST_REFINING_SHARE * budget_s, run, draws)
    left_s = budget_s - refining.seconds - (time.monotonic() - began)
    plan = scale_iterations(run.plan, max(left_s, SMALLEST_TRAINING_SHARE * budget_s) / planned)
    distils = any(isinstance(stage, DistilSam) for stage in stages)
    counts = (plan.distillation.iterations if distils else 0, plan.joint.iterations, plan.mutual.iterations)
    _log.info("time budget %.0f s: %d, %d and %d x %d iterations", budget_s, *counts, plan.rounds)
    _log.info("%d iterations refine the field of each scan before a round", refining.steps)
    if refining.scans is not None:
        _log.info("a round looks at %d of %d scans", refining.scans, len(run.batches.cases))
    return dataclasses.replace(
        plan, time_budget_s=budget_s, refinement_iterations=refining.steps, scans_a_stage=refining.scans
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Refining:
    """How fields are refined."""

    steps: int
    scans: int | None
    """A stage; None: all."""
    seconds: float
    """That all of it takes."""


def _refinement_within(limit_s: float, run: Run, draws: Sequence[float]) -> _Refining:
    """A refinement that keeps within a limit: fewer steps a field, then fewer scans a stage, then still fewer steps.

    `draws`: of every stage that refines, about as many scans as it will draw.
    """
    wanted, planned_scans = run.plan.refinement_iterations, run.plan.scans_a_stage
    if not draws or not wanted:
        return _Refining(steps=wanted, scans=planned_scans, seconds=0.0)
    fixed_s, step_s = field_seconds(run, wanted)

    def fields(scans: int) -> float:
        return float(run.batches.looks * sum(min(scans, drawn) for drawn in draws))

    def steps(scans: int) -> int:
        return max(1, min(wanted, int((limit_s / fields(scans) - fixed_s) / max(step_s, 1e-6))))

    n_cases = len(run.batches.cases)
    scans = most = min(n_cases, planned_scans or n_cases)
    fewest_steps = min(FEWEST_STEPS, wanted)
    while scans > FEWEST_SCANS and steps(scans) < fewest_steps:
        scans -= 1
    seconds = fields(scans) * (fixed_s + steps(scans) * step_s)
    return _Refining(steps=steps(scans), scans=planned_scans if scans == most else scans, seconds=seconds)
