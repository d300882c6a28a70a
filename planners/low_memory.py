"""A planner for small graphics cards: the default's rules under 0.75 GB, with thinner networks."""

from dataclasses import dataclass

from rrlsam.labels import LabelScheme
from rrlsam.plan import Plan
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint

from .one_shot import OneShotPlanner

_THINNER = OneShotPlanner(name="low_memory", first_width=8, memory_cap_gb=0.75)


@dataclass(frozen=True)
class LowMemoryPlanner:
    """Plans for at most 0.75 GB, however much is offered."""

    rules: OneShotPlanner = _THINNER

    def plan(
        self,
        fingerprint: Fingerprint,
        atlas: AtlasFingerprint,
        labels: LabelScheme,
        *,
        gpu_memory_target_gb: float,
        time_budget_s: float | None,
    ) -> Plan:
        """Plan as the default planner does."""
        return self.rules.plan(
            fingerprint, atlas, labels, gpu_memory_target_gb=gpu_memory_target_gb, time_budget_s=time_budget_s
        )
