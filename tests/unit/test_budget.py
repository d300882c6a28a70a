"""A time budget is kept: by fewer steps of refinement, fewer scans a stage, and fewer iterations."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from rrlsam.engine import budget
from rrlsam.engine.budget import FEWEST_SCANS, FEWEST_STEPS, LARGEST_REFINING_SHARE, fit_to_budget
from rrlsam.plan import Plan
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.mutual_learning import MutualLearning

FIXED_S, STEP_S, ITERATION_S = 1.0, 0.25, 1.0
LOOKS = 2
"""What a field costs, each step of its refinement, and a step of training; scans are seen in the mirror too."""


@pytest.fixture
def fitted(make_run, monkeypatch) -> Callable[..., Plan]:
    """The plan for so many scans and seconds, as if steps took what is written above."""
    run = make_run(rounds=2)
    mutual = MutualLearning(run.plan.mutual, refinement_iterations=20)
    stages = (JointRegSeg(run.plan.joint, refinement_iterations=20), mutual, mutual)
    monkeypatch.setattr(budget, "calibrate", lambda stage, run: ITERATION_S)
    monkeypatch.setattr(budget, "field_seconds", lambda run, steps: (FIXED_S, STEP_S))
    run.batches.looks = LOOKS

    def fit(n_scans: int, budget_s: float, *, planned_scans: int | None = None) -> Plan:
        run.batches.cases = tuple(map(str, range(n_scans)))
        run.plan = replace(run.plan, scans_a_stage=planned_scans)
        return fit_to_budget(run, stages, budget_s)

    return fit


def seconds_of(plan: Plan, n_scans: int) -> tuple[float, float]:
    """Of all fields and of all steps, worked out anew."""
    stages = (plan.joint.iterations, plan.mutual.iterations, plan.mutual.iterations)
    scans = n_scans if plan.scans_a_stage is None else plan.scans_a_stage
    fields = LOOKS * sum(min(scans, iterations) for iterations in stages)
    return fields * (FIXED_S + plan.refinement_iterations * STEP_S), ITERATION_S * sum(stages)


@pytest.mark.parametrize(
    ("n_scans", "budget_s"), [(4, 1200.0), (10, 1200.0), (40, 1200.0), (100, 1200.0), (400, 1200.0), (400, 36000.0)]
)
def test_the_budget_is_kept_however_many_scans_there_are(fitted, n_scans, budget_s):
    plan = fitted(n_scans, budget_s)
    refining, training = seconds_of(plan, n_scans)
    assert refining <= LARGEST_REFINING_SHARE * budget_s
    assert 0.95 * budget_s < refining + training < 1.02 * budget_s


def test_few_scans_are_refined_in_full_and_all_are_looked_at(fitted):
    plan = fitted(8, 3600.0)
    assert (plan.refinement_iterations, plan.scans_a_stage) == (20, None)


def test_of_many_scans_a_stage_looks_at_as_many_as_can_be_refined(fitted):
    plan = fitted(400, 1200.0)
    assert plan.scans_a_stage is not None
    assert FEWEST_SCANS < plan.scans_a_stage < 400
    assert plan.refinement_iterations == FEWEST_STEPS
    more, fewer = (fitted(400, budget_s).scans_a_stage or 0 for budget_s in (3600.0, 600.0))
    assert 0 < fewer < plan.scans_a_stage < more < 400


def test_of_few_scans_none_is_left_out_but_steps_are(fitted):
    plan = fitted(FEWEST_SCANS, 120.0)
    assert plan.scans_a_stage is None
    assert 1 <= plan.refinement_iterations < FEWEST_STEPS


def test_as_many_scans_a_stage_as_were_planned_are_looked_at_and_no_more(fitted):
    assert fitted(400, 360_000.0).scans_a_stage is None
    assert fitted(400, 360_000.0, planned_scans=30).scans_a_stage == 30
    fewer = fitted(400, 600.0, planned_scans=300).scans_a_stage
    assert fewer == fitted(400, 600.0).scans_a_stage < 300


def test_stages_without_iterations_refine_nothing(fitted, monkeypatch):
    monkeypatch.setattr(budget, "draws_of", lambda stage: 0)
    assert fitted(8, 3600.0, planned_scans=5).scans_a_stage == 5


def test_steps_of_training_remain_when_fields_alone_take_too_long(fitted):
    plan = fitted(400, 30.0)
    assert sum(seconds_of(plan, 400)) > 30.0
    assert seconds_of(plan, 400)[1] >= 0.4 * 30.0
