"""All that a plug-in has to know: what a planner and a trainer must offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rrlsam.labels import LabelScheme
from rrlsam.plan import Plan
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint

if TYPE_CHECKING:
    from rrlsam.engine.fit import Run
    from rrlsam.stages.state import Stage


@runtime_checkable
class Planner(Protocol):
    """Fingerprints in, plan out; pure: no disk, no clock, no torch."""

    def plan(
        self,
        fingerprint: Fingerprint,
        atlas: AtlasFingerprint,
        labels: LabelScheme,
        *,
        gpu_memory_target_gb: float,
        time_budget_s: float | None,
    ) -> Plan:
        """Plan one atlas's training."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """A list of stages and the order in which they run."""

    def stages(self, plan: Plan, *, distil: bool, ablations: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """The stages of a plan, with iteration counts as planned.

        `distil`: there is a teacher, or a general encoder to start from.
        """
        ...

    def run(self, run: Run, stages: tuple[Stage, ...]) -> None:
        """Train until every stage is finished, starting from what `run` already holds."""
        ...
