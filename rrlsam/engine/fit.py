"""The only optimisation loop of the package."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rrlsam.data.atlas import Atlas, AtlasView
from rrlsam.data.batches import Batches
from rrlsam.engine.device import Device
from rrlsam.engine.fields import forget_fields, refined_fields, resting_fields
from rrlsam.engine.journal import Journal
from rrlsam.engine.schedule import learning_rate, seconds_per_step
from rrlsam.errors import BadInputError
from rrlsam.models.checkpoint import Checkpoint, Progress, Provenance, save_latest
from rrlsam.nets.build import Networks
from rrlsam.plan import Plan
from rrlsam.stages.state import LossTerms, Stage
from rrlsam.system.stopping import Held, Terminated, held_back

SECONDS_BETWEEN_CHECKPOINTS = 60.0
PICTURE = "progress.png"
MOST_SKIPPED_IN_A_ROW = 20
_LARGEST_GRADIENT_NORM = 5.0
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A training run: what it is made of, and how far it has come."""

    plan: Plan
    provenance: Provenance
    atlases: tuple[Atlas, ...]
    atlas: AtlasView
    nets: Networks
    batches: Batches
    device: Device
    folder: Path
    journal: Journal
    progress: Progress
    advance: Callable[[], None] = lambda: None
    """Called after every iteration, for a progress bar."""
    skipped_in_a_row: int = field(default=0)
    """Steps left out because their loss was not finite, since the last one that was."""

    def fit(self, stage: Stage) -> None:
        """Train one stage to its end, from wherever it was left; a finished stage is passed over."""
        if stage.name not in self.progress.finished:
            fit(stage, self)

    def keep(self, progress: Progress) -> None:
        """Keep the state as the newest checkpoint and in `progress`; refined fields that no checkpoint needs go."""
        before, self.progress = self.progress, progress
        save_latest(self.checkpoint(), self.folder)
        forget_fields(self.folder, except_for=(before.stage, progress.stage))

    def checkpoint(self) -> Checkpoint:
        """The state as it is."""
        return Checkpoint(
            plan=self.plan,
            provenance=self.provenance,
            atlases=self.atlases,
            networks=self.nets.state_dict(),
            progress=self.progress,
        )

    def draw_progress(self) -> None:
        """Draw progress.png from the journal."""
        from rrlsam.pictures import training_picture

        training_picture(self.journal.records(), self.folder / PICTURE)


def fit(stage: Stage, run: Run) -> None:
    """Train what the stage names and freeze the rest, saving as it goes."""
    optimizer = _optimizer(stage, run.nets)
    start = 0
    if run.progress.stage == stage.name:
        start = run.progress.iteration
        optimizer.load_state_dict(run.progress.optimizer or {})
    else:
        stage.begin(run.nets)
    run.batches.fields = refined_fields(stage, run)
    with held_back() as held:
        _iterate(stage, run, optimizer, start, held)
    run.draw_progress()


def _iterate(stage: Stage, run: Run, optimizer: torch.optim.Optimizer, start: int, held: Held) -> None:
    """All iterations of a stage that are left, or those up to when stopping is asked for; either way, keep them."""
    saved = time.monotonic()
    for iteration in range(start, stage.settings.iterations):
        try:
            terms, rate = step(stage, run, optimizer, iteration, held.let_through)
        except (KeyboardInterrupt, Terminated):
            _stop(stage, run, optimizer, iteration)
            raise
        run.journal.write(stage.name, iteration, rate, terms)
        run.advance()
        if held():
            _stop(stage, run, optimizer, iteration + 1)
            return
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            _save(stage, run, optimizer, iteration + 1)
            saved = time.monotonic()
    finished = (*run.progress.finished, stage.name)
    done = Progress(finished=finished, stage="", iteration=0, optimizer=None, journal_size=run.journal.size)
    run.keep(done)


def step(
    stage: Stage,
    run: Run,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    interruptible: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> tuple[dict[str, float], float]:
    """One iteration; returns the loss terms and the learning rate. A step whose loss is not finite is left out.

    `interruptible`: around all that may be broken off, since it changes nothing that lasts.
    """
    settings = stage.settings
    rate = learning_rate(settings, iteration)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with interruptible():
        batch = run.batches.draw(
            stage.name,
            iteration,
            settings.batch_size,
            augment=stage.augment,
            patches=stage.uses_patches,
            compare=stage.registers,
        ).to(run.device.place)
        optimizer.zero_grad(set_to_none=True)
        with run.device.autocast():
            losses: LossTerms = stage.loss(run.nets, run.atlas.mirrored(batch.mirrored), batch)
        losses.total.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT_NORM))
    if math.isfinite(norm):
        optimizer.step()
        stage.after_step(run.nets)
        run.skipped_in_a_row = 0
    else:
        _skip(stage, run, iteration)
    return losses.numbers(), rate


def _stop(stage: Stage, run: Run, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    _save(stage, run, optimizer, iteration)
    _log.warning("stopped in %s after %d iterations; --c goes on from there", stage.name, iteration)


def _skip(stage: Stage, run: Run, iteration: int) -> None:
    """Count a step that is left out; BadInputError after too many in a row, which leave the kept state as it is."""
    run.skipped_in_a_row += 1
    _log.warning("%s, iteration %d: the loss is not finite, the step is left out", stage.name, iteration)
    if run.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        raise BadInputError(
            f"{run.folder}: {stage.name}: the loss was not finite {run.skipped_in_a_row} times in a row; look for "
            "scans of strange intensities, or lower learning_rate in plan.json and train with --overwrite"
        )


def calibrate(stage: Stage, run: Run) -> float:
    """Seconds that an iteration of a stage takes here; the run's weights stay as they are."""
    trial = copy.copy(run)
    trial.nets, trial.batches = copy.deepcopy(run.nets), copy.copy(run.batches)
    trial.batches.fields = resting_fields(run) if stage.refinement_iterations else None
    optimizer = _optimizer(stage, trial.nets)
    return seconds_per_step(lambda iteration: step(stage, trial, optimizer, iteration))


def _optimizer(stage: Stage, nets: Networks) -> torch.optim.Optimizer:
    nets.requires_grad_(False)
    nets.train()
    parameters = []
    for module in stage.trainable(nets):
        module.requires_grad_(True)
        parameters += list(module.parameters())
    return torch.optim.Adam(parameters, lr=stage.settings.learning_rate)


def _save(stage: Stage, run: Run, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    progress = Progress(
        finished=run.progress.finished,
        stage=stage.name,
        iteration=iteration,
        optimizer=optimizer.state_dict(),
        journal_size=run.journal.size,
    )
    run.keep(progress)
