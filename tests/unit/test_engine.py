"""The optimisation loop, its schedule, its journal and its checkpoints."""

import dataclasses
import json
import logging
import math
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from rrlsam.data.atlas import AtlasView
from rrlsam.data.batches import Batch, Batches
from rrlsam.engine import device as device_module
from rrlsam.engine import fit as engine
from rrlsam.engine.budget import fit_to_budget
from rrlsam.engine.device import choose_device
from rrlsam.engine.fields import refined_fields
from rrlsam.engine.fit import Run, calibrate, fit
from rrlsam.engine.journal import Journal
from rrlsam.engine.schedule import (
    WARM_UP,
    WARM_UP_SHARE,
    fix_iterations,
    learning_rate,
    scale_iterations,
    seconds_per_step,
)
from rrlsam.errors import BadInputError, ResourceError
from rrlsam.models.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from rrlsam.nets.build import Networks
from rrlsam.plan import StagePlan
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.state import LossTerms


class NotFinite(JointRegSeg):
    """Stage 1b with losses that are not finite."""

    def loss(self, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        terms = super().loss(nets, atlas, batch).terms
        return LossTerms({name: term * math.nan for name, term in terms.items()})


@pytest.fixture
def run(make_run) -> Run:
    return make_run()


def checkpoint_of(run: Run) -> Checkpoint:
    return Checkpoint(
        plan=run.plan,
        provenance=run.provenance,
        atlases=run.atlases,
        networks=run.nets.state_dict(),
        progress=run.progress,
    )


def test_the_learning_rate_warms_up_and_ends_near_zero():
    settings = StagePlan(iterations=1000, learning_rate=2.0, batch_size=1)
    assert learning_rate(settings, 0) == pytest.approx(2.0 / WARM_UP)
    assert learning_rate(settings, 500) == pytest.approx(1.0)
    assert learning_rate(settings, 250) == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < learning_rate(settings, 999) < 1e-4


def test_the_learning_rate_falls_once_it_is_warm():
    settings = StagePlan(iterations=100, learning_rate=1.0, batch_size=1)
    rates = [learning_rate(settings, i) for i in range(WARM_UP - 1, 100)]
    assert rates == sorted(rates, reverse=True)


def test_a_stage_of_few_steps_is_warm_early():
    settings = StagePlan(iterations=5 * WARM_UP_SHARE, learning_rate=1.0, batch_size=1)
    rates = [learning_rate(settings, i) for i in range(settings.iterations)]
    assert rates.index(max(rates)) == 4
    assert learning_rate(StagePlan(iterations=1, learning_rate=1.0, batch_size=1), 0) == 1.0


def test_iterations_are_scaled_but_never_to_nothing(make_plan):
    stage = StagePlan(iterations=100, learning_rate=1.0, batch_size=1)
    plan = make_plan(
        distillation=dataclasses.replace(stage, iterations=0),
        joint=stage,
        mutual=dataclasses.replace(stage, iterations=1),
    )
    scaled = scale_iterations(plan, 0.25)
    assert [s.iterations for s in (scaled.distillation, scaled.joint, scaled.mutual)] == [0, 25, 1]


def test_fixed_iterations_hold_for_every_stage(make_plan):
    fixed = fix_iterations(make_plan(), 7)
    assert [s.iterations for s in (fixed.distillation, fixed.joint, fixed.mutual)] == [7, 7, 7]
    assert fixed.joint.learning_rate == make_plan().joint.learning_rate


def test_the_first_step_does_not_count_in_the_duration(monkeypatch):
    clock = map(float, (0, 100, 100, 101, 101, 103, 103, 104, 104, 105, 105, 106))
    monkeypatch.setattr("rrlsam.engine.schedule.time.perf_counter", lambda: next(clock))
    assert seconds_per_step(lambda number: None) == 1


def test_a_journal_is_cut_to_what_belongs_to_a_checkpoint(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write("a", 0, 0.1, {"x": 1.0})
    kept = journal.size
    journal.write("a", 1, 0.1, {"x": 2.0})
    journal.cut(kept)
    journal.write("a", 1, 0.1, {"x": 3.0})
    assert [record["terms"]["x"] for record in journal.records()] == [1.0, 3.0]
    journal.close()


def test_a_journal_goes_on_after_it_was_closed(tmp_path):
    for iteration in range(2):
        journal = Journal(tmp_path / "metrics.jsonl")
        journal.write("a", iteration, 0.1, {})
        journal.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1]


def test_a_checkpoint_comes_back_as_it_was(run, tmp_path):
    fit(JointRegSeg(run.plan.joint), run)
    save_checkpoint(checkpoint_of(run), tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded.plan == run.plan
    assert loaded.provenance == run.provenance
    assert loaded.progress == run.progress
    assert all(torch.equal(tensor, loaded.networks[name]) for name, tensor in run.nets.state_dict().items())
    (atlas,) = loaded.atlases
    assert torch.equal(atlas.image, run.atlases[0].image)
    assert torch.equal(atlas.label, run.atlases[0].label)
    assert (atlas.grid, atlas.foreground) == (run.atlases[0].grid, run.atlases[0].foreground)


def test_a_checkpoint_holds_no_code(run, tmp_path):
    save_checkpoint(checkpoint_of(run), tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["format"] == FORMAT


def test_the_optimizers_state_comes_back(run):
    stage = JointRegSeg(run.plan.joint)
    optimizer = engine._optimizer(stage, run.nets)
    engine.step(stage, run, optimizer, 0)
    engine._save(stage, run, optimizer, 1)
    progress = load_checkpoint(run.folder / "checkpoint_latest.pt").progress
    assert (progress.stage, progress.iteration) == (stage.name, 1)
    assert progress.optimizer is not None
    again = engine._optimizer(stage, run.nets)
    again.load_state_dict(progress.optimizer)
    first, second = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert first.keys() == second.keys() != set()
    assert all(torch.equal(first[key]["exp_avg"], second[key]["exp_avg"]) for key in first)


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[: len(whole) // 2], lambda _: b"garbage", lambda _: b""],
    ids=["cut", "garbage", "empty"],
)
def test_a_damaged_checkpoint_is_refused(run, tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(checkpoint_of(run), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInputError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_a_newer_format_is_refused(run, tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(checkpoint_of(run), path)
    torch.save(torch.load(path, weights_only=True) | {"format": FORMAT + 1}, path)
    with pytest.raises(BadInputError, match="another program or version"):
        load_checkpoint(path)


def test_a_file_of_plain_tensors_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "c.pt")
    with pytest.raises(BadInputError, match="not a checkpoint of format"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_checkpoint_that_carries_code_is_refused(tmp_path):
    torch.save({"format": FORMAT, "code": nn.Linear(1, 1)}, tmp_path / "c.pt")
    with pytest.raises(BadInputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"c\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ResourceError, match="-device cuda: no such device"):
        choose_device("cuda")


def test_the_processor_is_always_there():
    device = choose_device("cpu")
    assert device.place == torch.device("cpu")
    assert "asked for" in device.reason


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_multiplies_in_bfloat16_only_where_it_has_instructions_for_it(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert choose_device("cuda").precision == precision


@pytest.mark.parametrize("gpu", [True, False])
def test_no_more_threads_than_the_machine_lends(monkeypatch, gpu):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(device_module, "usable_cores", lambda: 2)
    choose_device()
    assert taken == [2]


def test_a_plan_without_iterations_cannot_fill_a_budget(make_run):
    none = StagePlan(iterations=0, learning_rate=1e-2, batch_size=1)
    idle = make_run(joint=none, mutual=none)
    with pytest.raises(BadInputError, match="no iterations that a time budget could make more or fewer"):
        fit_to_budget(idle, (JointRegSeg(none),), 60.0)


def test_a_step_whose_loss_is_not_finite_is_left_out(run, weights_of, caplog):
    before = weights_of(run.nets)
    stage = NotFinite(run.plan.joint)
    with caplog.at_level(logging.WARNING, logger="rrlsam"):
        engine.step(stage, run, engine._optimizer(stage, run.nets), 0)
    assert run.skipped_in_a_row == 1
    assert "iteration 0: the loss is not finite" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in run.nets.state_dict().items())


def test_training_survives_losses_that_are_not_finite(run):
    fit(NotFinite(run.plan.joint), run)
    assert run.skipped_in_a_row == run.plan.joint.iterations
    assert run.progress.finished == ("joint_reg_seg",)


def test_training_ends_when_no_loss_is_finite_any_more(make_run):
    """What was kept before stays."""
    run = make_run(joint=StagePlan(iterations=3 * engine.MOST_SKIPPED_IN_A_ROW, learning_rate=1e-2, batch_size=1))
    run.keep(run.progress)
    before = (run.folder / "checkpoint_latest.pt").read_bytes()
    stopped = rf"joint_reg_seg: the loss was not finite {engine.MOST_SKIPPED_IN_A_ROW} times in a row; .*learning_rate"
    with pytest.raises(BadInputError, match=stopped):
        fit(NotFinite(run.plan.joint), run)
    assert run.skipped_in_a_row == engine.MOST_SKIPPED_IN_A_ROW
    assert (run.folder / "checkpoint_latest.pt").read_bytes() == before


def test_steps_that_are_skipped_now_and_then_end_nothing(make_run, monkeypatch, caplog):
    monkeypatch.setattr(engine, "MOST_SKIPPED_IN_A_ROW", 2)
    run = make_run()
    bad, good = NotFinite(run.plan.joint), JointRegSeg(run.plan.joint)
    optimizer = engine._optimizer(good, run.nets)
    for iteration, stage in enumerate((bad, good, bad, good)):
        engine.step(stage, run, optimizer, iteration)
    assert caplog.text.count("the step is left out") == 2


def test_a_sound_step_is_not_skipped(run, weights_of):
    before = weights_of(run.nets.medical_encoder)
    stage = JointRegSeg(run.plan.joint)
    engine.step(stage, run, engine._optimizer(stage, run.nets), 0)
    assert run.skipped_in_a_row == 0
    assert any(not torch.equal(before[n], t) for n, t in run.nets.medical_encoder.state_dict().items())


def test_measuring_the_duration_leaves_weights_journal_and_randomness_alone(run, weights_of):
    before, state = weights_of(run.nets), torch.get_rng_state()
    assert calibrate(JointRegSeg(run.plan.joint), run) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in run.nets.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert run.journal.records() == []


def test_measuring_the_duration_looks_at_fields_where_training_will(run, monkeypatch):
    seen = []
    draw = Batches.draw

    def look(batches, *key, **options):
        batch = draw(batches, *key, **options)
        seen.append(batch.atlas_points is not None)
        return batch

    monkeypatch.setattr(Batches, "draw", look)
    for refinement in (0, 3):
        calibrate(JointRegSeg(run.plan.joint, refinement_iterations=refinement), run)
        assert set(seen) == {refinement > 0}
        seen.clear()
    assert run.batches.fields is None


def test_fields_need_no_open_files(run, tmp_path):
    settings = dataclasses.replace(run.plan.joint, iterations=len(run.batches.registered))
    fields = refined_fields(JointRegSeg(settings, refinement_iterations=1), run)
    assert fields is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [float(fields[case].abs().max()) for case in fields]
    assert len(kept) == len(run.batches.registered) == len(fields)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_finished_stage_is_passed_over(run, weights_of):
    stage = JointRegSeg(run.plan.joint)
    run.fit(stage)
    before = weights_of(run.nets)
    run.fit(stage)
    assert len(run.journal.records()) == stage.settings.iterations
    assert all(torch.equal(before[name], tensor) for name, tensor in run.nets.state_dict().items())


def test_progress_is_told_once_an_iteration(run):
    told = []
    run.advance = lambda: told.append(1)
    run.fit(JointRegSeg(run.plan.joint))
    assert len(told) == run.plan.joint.iterations


def test_an_iteration_that_is_broken_off_is_done_again(make_run, monkeypatch):
    """The state is kept as it was before it; Ctrl-C comes in the second iteration."""
    stage, calls, loss = StagePlan(iterations=4, learning_rate=1e-2, batch_size=1), [], JointRegSeg.loss

    def pressed(self: JointRegSeg, nets: Networks, atlas: AtlasView, batch: Batch) -> LossTerms:
        calls.append(1)
        found = loss(self, nets, atlas, batch)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return found

    whole = make_run(joint=stage)
    fit(JointRegSeg(stage), whole)
    expected = whole.journal.records()
    whole.journal.cut(0)
    stopped = make_run(joint=stage)
    monkeypatch.setattr(JointRegSeg, "loss", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(JointRegSeg(stage), stopped)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = load_checkpoint(stopped.folder / "checkpoint_latest.pt")
    assert (kept.progress.stage, kept.progress.iteration) == ("joint_reg_seg", 1)
    assert stopped.journal.records() == expected[:1]
    stopped.progress = kept.progress
    stopped.nets.load_state_dict(kept.networks)
    fit(JointRegSeg(stage), stopped)
    assert stopped.journal.records() == expected
    assert all(torch.equal(t, whole.nets.state_dict()[name]) for name, t in stopped.nets.state_dict().items())


def test_a_stage_without_iterations_is_finished_at_once(run, weights_of):
    before = weights_of(run.nets)
    run.fit(JointRegSeg(dataclasses.replace(run.plan.joint, iterations=0)))
    assert run.progress.finished == ("joint_reg_seg",)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.nets.state_dict().items())
