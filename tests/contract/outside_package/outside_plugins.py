"""A planner and trainers as somebody else would write them, outside the package."""

import dataclasses

from rrlsam.engine.fit import Run
from rrlsam.labels import LabelScheme
from rrlsam.plan import NetworkPlan, Plan
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint
from rrlsam.registry import get_planner
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.state import Stage


class SmallPlanner:
    """The default plan with networks that are quick to train (4, 8, 16, ... channels) and fields hardly refined."""

    def plan(
        self,
        fingerprint: Fingerprint,
        atlas: AtlasFingerprint,
        labels: LabelScheme,
        *,
        gpu_memory_target_gb: float,
        time_budget_s: float | None,
    ) -> Plan:
        """Plan as the default planner does, then thin the networks."""
        plan = get_planner("default").plan(
            fingerprint, atlas, labels, gpu_memory_target_gb=gpu_memory_target_gb, time_budget_s=time_budget_s
        )
        network = plan.network
        widths = tuple(4 * 2**level for level in range(len(network.widths)))
        thin = NetworkPlan(widths=widths, strides=network.strides, kernels=network.kernels)
        few = {"refinement_iterations": 2, "prediction_refinement_iterations": 4}
        return dataclasses.replace(plan, planner="small", network=thin, **few)


class JointOnlyTrainer:
    """Stage 1b and nothing else."""

    def stages(self, plan: Plan, *, distil: bool, ablations: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """One stage of ours in the place of three."""
        return (JointRegSeg(plan.joint, name="only_joint", refinement_iterations=plan.refinement_iterations),)

    def run(self, run: Run, stages: tuple[Stage, ...]) -> None:
        """Train it."""
        for stage in stages:
            run.fit(stage)


class NoTrainer:
    """Lacks everything."""
