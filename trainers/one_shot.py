"""The paper in one screen: dual-stage knowledge distillation, mutual-EMA, the pseudo-label loop, the AP decoder."""

from rrlsam.engine.fit import Run
from rrlsam.plan import Plan
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.mutual_learning import EmaDirection, MutualLearning
from rrlsam.stages.state import Stage


class OneShotTrainer:
    """RRL-MedSAM; each stage starts from what the one before left."""

    def stages(self, plan: Plan, *, distil: bool, ablations: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """Stage 1a and 1b, then as many rounds of stage 2 as planned."""
        refined = 0 if {"no_refinement", "bilevel"} & ablations else plan.refinement_iterations
        distillation = (DistilSam(plan.distillation, kind=plan.distillation_loss),) if distil else ()
        rounds = tuple(
            MutualLearning(
                plan.mutual,
                name=f"mutual_learning_{number}",
                follow_medical=number == 1 and not distil,
                ema=ema_direction(ablations),
                prompted="no_auto_prompt" not in ablations,
                general_branch="no_general_branch" not in ablations,
                refinement_iterations=refined,
                bilevel="bilevel" in ablations,
            )
            for number in range(1, plan.rounds + 1)
        )
        return (*distillation, JointRegSeg(plan.joint, refinement_iterations=refined), *rounds)

    def run(self, run: Run, stages: tuple[Stage, ...]) -> None:
        """Train every stage that is not finished yet."""
        for stage in stages:
            run.fit(stage)


def ema_direction(ablations: frozenset[str]) -> EmaDirection:
    """Which way the encoders pull each other."""
    if "no_mutual_ema" in ablations:
        return "off"
    return "one_way" if "one_way_ema" in ablations else "mutual"
