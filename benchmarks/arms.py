"""The arms of benchmarks/distillation.py: what each leaves out or replaces, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from rrlsam.plan import DistillationKind


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    says: str
    """In the table."""
    teacher: str | None = "given"
    """None: no distillation; given: that of --teacher; else a control of teachers.py."""
    ablations: tuple[str, ...] = ()
    against: tuple[str, ...] = ("none",)
    """The arms whose runs of the same seeds are subtracted."""
    loss: DistillationKind = "mse"
    trainer: str = "default"
    """By name or as module:Class."""
    longer: int = 1
    """Factor of the iterations of stage 1a."""

    @property
    def plans(self) -> str:
        """Name of the plans: arms that plan alike share them."""
        return f"{self.loss}_{self.longer}"


_ALL = (
    Arm(name="none", says="no distillation", teacher=None, against=()),
    Arm(
        name="given",
        says="the teacher",
        against=("none", "random_sam", "random_isnet", "intensity", "none_cold"),
    ),
    Arm(name="random_sam", says="randomly initialised SAM, 256 px", teacher="random_sam"),
    Arm(name="intensity", says="random projections of grey values", teacher="intensity"),
    Arm(name="random_isnet", says="ISNet with shuffled weights", teacher="random_isnet"),
    Arm(name="truth", says="diagnosis: the training scans' true labels as features", teacher="truth"),
    Arm(name="no_ema", says="without mutual-EMA", ablations=("no_mutual_ema",), against=("given", "none")),
    Arm(name="one_way_ema", says="one-way EMA", ablations=("one_way_ema",), against=("given", "none")),
    Arm(name="no_prompt", says="without auto-prompting", ablations=("no_auto_prompt",), against=("given", "none")),
    Arm(name="no_general", says="without general branch", ablations=("no_general_branch",), against=("given", "none")),
    Arm(name="cosine", says="the teacher, cosine distance", loss="cosine"),
    Arm(name="l1", says="the teacher, L1 distance", loss="l1"),
    Arm(name="longer", says="the teacher, stage 1a four times as long", longer=4),
    Arm(
        name="none_cold",
        says="no distillation, general branch untrained before stage 2",
        teacher=None,
        trainer="hand_over:ColdStart",
    ),
    Arm(
        name="given_warm",
        says="the teacher, general branch with the medical decoder",
        trainer="hand_over:WarmDecoder",
        against=("none", "given"),
    ),
    Arm(name="none_plain", says="no distillation, no refinement", teacher=None, ablations=("no_refinement",)),
    Arm(name="given_plain", says="the teacher, no refinement", ablations=("no_refinement",), against=("none_plain",)),
)
ARMS = {arm.name: arm for arm in _ALL}
