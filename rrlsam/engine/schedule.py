"""Learning rates, and iteration counts that fit a time budget."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

from rrlsam.plan import Plan, StagePlan

WARM_UP, WARM_UP_SHARE = 20, 8
"""Steps, and of how many steps of a stage it is at most one."""
_CALIBRATION_SECONDS = 12.0
_FEWEST_STEPS, _MOST_STEPS = 6, 24


def learning_rate(settings: StagePlan, iteration: int) -> float:
    """Linear warm-up over the first steps, then a half cosine to zero."""
    warm = min(1.0, (iteration + 1) / max(1, min(WARM_UP, settings.iterations // WARM_UP_SHARE)))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * iteration / max(settings.iterations, 1)))


def seconds_per_step(step: Callable[[int], object]) -> float:
    """Median duration of a few steps, after as many that warm up memory, caches and kernels."""
    durations = []
    while len(durations) < _FEWEST_STEPS or (sum(durations) < _CALIBRATION_SECONDS and len(durations) < _MOST_STEPS):
        start = time.perf_counter()
        step(len(durations))
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[len(durations) // 2 :])


def scale_iterations(plan: Plan, factor: float) -> Plan:
    """The plan with every stage's iteration count multiplied; a stage that had any keeps at least one."""
    return _each_stage(plan, lambda count: max(1, round(count * factor)) if count else 0)


def fix_iterations(plan: Plan, iterations: int) -> Plan:
    """The plan with the same iteration count for every stage."""
    return _each_stage(plan, lambda _: iterations)


def _each_stage(plan: Plan, count_of: Callable[[int], int]) -> Plan:
    def changed(settings: StagePlan) -> StagePlan:
        return dataclasses.replace(settings, iterations=count_of(settings.iterations))

    return dataclasses.replace(
        plan, distillation=changed(plan.distillation), joint=changed(plan.joint), mutual=changed(plan.mutual)
    )
