"""Trainers that differ from the default one in what the general branch is when stage 2 begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rrlsam.engine.fit import Run
from rrlsam.nets.build import Networks
from rrlsam.plan import Plan
from rrlsam.registry import get_trainer
from rrlsam.stages.mutual_learning import MutualLearning
from rrlsam.stages.state import Stage


@dataclass(frozen=True)
class KeepEncoder(MutualLearning):
    """The general branch gets the medical one's decoder and keeps its own encoder."""

    def begin(self, nets: Networks) -> None:
        """Copy the decoder."""
        nets.general_decoder.load_state_dict(nets.auto_prompt_decoder.segmentation.state_dict())


class ColdStart:
    """Without distillation the general branch starts untrained too, as it does after distillation."""

    def stages(self, plan: Plan, *, distil: bool, ablations: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """The default trainer's, none of which copies the medical branch."""
        stages = get_trainer("default").stages(plan, distil=distil, ablations=ablations)
        return tuple(
            dataclasses.replace(stage, follow_medical=False) if isinstance(stage, MutualLearning) else stage
            for stage in stages
        )

    def run(self, run: Run, stages: tuple[Stage, ...]) -> None:
        """As the default trainer."""
        get_trainer("default").run(run, stages)


class WarmDecoder(ColdStart):
    """After distillation the general branch starts with the medical decoder."""

    def stages(self, plan: Plan, *, distil: bool, ablations: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """The default trainer's, but for how the first round begins."""
        stages = list(super().stages(plan, distil=distil, ablations=ablations))
        first = next(i for i, stage in enumerate(stages) if isinstance(stage, MutualLearning))
        fields = {field.name: getattr(stages[first], field.name) for field in dataclasses.fields(MutualLearning)}
        stages[first] = KeepEncoder(**fields)
        return tuple(stages)
