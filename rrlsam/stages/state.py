"""What a stage is, and what its losses look like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch
from rrlsam.nets.build import Networks
from rrlsam.plan import StagePlan


@dataclass(frozen=True)
class LossTerms:
    """Named, weighted terms of one step."""

    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return torch.stack(list(self.terms.values())).sum()

    def numbers(self) -> dict[str, float]:
        """The terms for the journal."""
        return {name: float(term.detach()) for name, term in self.terms.items()}


@runtime_checkable
class Stage(Protocol):
    """One stage of the method; holds nothing but its numbers."""

    @property
    def name(self) -> str:
        """Key in checkpoint, journal and random streams."""
        ...

    @property
    def settings(self) -> StagePlan:
        """Iterations, learning rate, batch size."""
        ...

    @property
    def augment(self) -> bool:
        """Whether scans are changed at random."""
        ...

    @property
    def uses_patches(self) -> bool:
        """Whether the fine patch is looked at, if the grid is too large to be seen whole."""
        ...

    @property
    def registers(self) -> bool:
        """Whether warped atlas and scan are compared."""
        ...

    @property
    def refinement_iterations(self) -> int:
        """Steps by which the field of every scan that is drawn is refined before; 0: refined fields are not used."""
        ...

    def trainable(self, nets: Networks) -> Iterable[nn.Module]:
        """What learns; all else is frozen by the loop."""
        ...

    def begin(self, nets: Networks) -> None:
        """What happens once, before the first step."""
        ...

    def loss(self, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        """The terms of one step. It changes nothing, since it may be broken off and done again."""
        ...

    def after_step(self, nets: Networks) -> None:
        """What happens after each step; mutual-EMA lives here."""
        ...
