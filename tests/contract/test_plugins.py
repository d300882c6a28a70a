"""Planners and trainers, ours and others': found by name or as module:Class, held to the same promises."""

import runpy
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rrlsam import registry
from rrlsam.errors import UsageError
from rrlsam.interfaces import Planner, Trainer
from rrlsam.plan import Plan, check_plan
from rrlsam.registry import PLANNERS, TRAINERS, get_planner, get_trainer, list_plugins
from rrlsam.settings import ABLATIONS
from rrlsam.stages.state import Stage

OUTSIDE_PLANNER, OUTSIDE_TRAINER = "outside_plugins:SmallPlanner", "outside_plugins:JointOnlyTrainer"
make = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "refresh.py"))

planners = pytest.mark.parametrize("name", [*list_plugins(PLANNERS), OUTSIDE_PLANNER])
trainers = pytest.mark.parametrize("name", [*list_plugins(TRAINERS), OUTSIDE_TRAINER])
pytestmark = pytest.mark.usefixtures("outside_package")


def plan_by(name: str) -> Plan:
    """A plan for one scan of 40^3 voxels with a cube of structures."""
    atlas = make["atlas_of"]((40, 40, 40), (1.0, 1.0, 1.0), (10, 10, 10), (30, 30, 30))
    fingerprint = make["fingerprint_of"]([make["scan"](atlas.size_vox, atlas.spacing_mm)], channels=("T1",))
    planner = get_planner(name)
    return planner.plan(fingerprint, atlas, make["labels_of"](3), gpu_memory_target_gb=8.0, time_budget_s=60.0)


def test_ours_are_registered():
    assert set(list_plugins(PLANNERS)) >= {"default", "low_memory"}
    assert "default" in list_plugins(TRAINERS)


@planners
def test_a_planner_has_the_methods_of_one(name):
    assert isinstance(get_planner(name), Planner)


@planners
def test_a_planners_plan_fits_together(name):
    plan = plan_by(name)
    assert check_plan(plan, source=name) is plan


@planners
def test_a_planner_keeps_what_it_was_told(name):
    plan = plan_by(name)
    assert plan.time_budget_s == 60.0
    assert plan.channel_names == ("T1",)
    assert plan.labels == make["labels_of"](3)


@planners
def test_a_planner_plans_the_same_every_time(name):
    assert plan_by(name) == plan_by(name)


@planners
def test_a_plans_networks_can_be_built(name):
    from rrlsam.nets.build import build_networks

    assert build_networks(plan_by(name), seed=0).encoder_ratio <= 0.03


@trainers
def test_a_trainer_has_the_methods_of_one(name):
    assert isinstance(get_trainer(name), Trainer)


@trainers
@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("ablation", [None, *ABLATIONS])
def test_a_trainers_stages_are_stages_with_names_of_their_own(name, distil, ablation):
    ablations = frozenset() if ablation is None else frozenset({ablation})
    stages = get_trainer(name).stages(plan_by("default"), distil=distil, ablations=ablations)
    assert stages
    assert all(isinstance(stage, Stage) for stage in stages)
    assert len({stage.name for stage in stages}) == len(stages)


@trainers
def test_a_trainer_runs_every_stage(name):
    class Recorder:
        def __init__(self) -> None:
            self.done = []

        def fit(self, stage: Stage) -> None:
            self.done.append(stage.name)

    trainer, recorder = get_trainer(name), Recorder()
    stages = trainer.stages(plan_by("default"), distil=True)
    run: Any = getattr(trainer.run, "__wrapped__", None)  # without the tests' own check of types
    run(trainer, recorder, stages) if run else trainer.run(recorder, stages)  # pyright: ignore
    assert recorder.done == [stage.name for stage in stages]


def test_a_trainer_from_outside_goes_through_the_command(make_project):
    project = make_project(n_labelled=2, n_unlabelled=1, n_test=1)
    assert project.plan().code == 0
    answer = project.train("0", "-tr", OUTSIDE_TRAINER)
    assert answer.code == 0, answer.err
    model = project.results / "outside_plugins-JointOnlyTrainer__rrlsamPlans"
    assert '"only_joint"' in (model / "fold_0" / "metrics.jsonl").read_text()
    assert project.predict(project.dataset / "imagesTs", project.folder / "out", "-tr", OUTSIDE_TRAINER).code == 0


@pytest.fixture
def distributions(monkeypatch):
    """Pretend that distributions register entry points: (group, name, value, distribution)."""

    def pretend(*registered: tuple[str, str, str, str]) -> None:
        points = []
        for group, name, value, owner in registered:
            load = EntryPoint(name, value, group).load
            dist = SimpleNamespace(name=owner)
            points.append(SimpleNamespace(name=name, value=value, group=group, dist=dist, load=load))
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])

    return pretend


def test_a_registered_trainer_of_another_distribution_is_found(distributions):
    distributions((TRAINERS, "joint_only", OUTSIDE_TRAINER, "other"))
    assert type(get_trainer("joint_only")).__name__ == "JointOnlyTrainer"
    assert list_plugins(TRAINERS) == ("joint_only",)


def test_a_name_that_two_distributions_claim_is_an_error(distributions):
    distributions((TRAINERS, "mine", OUTSIDE_TRAINER, "one"), (TRAINERS, "mine", "elsewhere:Trainer", "two"))
    with pytest.raises(UsageError, match=r"'mine' is claimed by several packages \(one, two\)"):
        get_trainer("mine")


def test_a_distribution_that_is_found_twice_claims_nothing_twice(distributions):
    distributions((PLANNERS, "mine", OUTSIDE_PLANNER, "one"), (PLANNERS, "mine", OUTSIDE_PLANNER, "one"))
    assert type(get_planner("mine")).__name__ == "SmallPlanner"


def test_an_unknown_planner_lists_the_known_ones():
    with pytest.raises(UsageError, match="no planner named 'nothing'; known: default, low_memory"):
        get_planner("nothing")


def test_an_unknown_trainer_lists_the_known_ones():
    with pytest.raises(UsageError, match="no trainer named 'nothing'; known: default"):
        get_trainer("nothing")


@pytest.mark.parametrize("name", ["no_such_module:Trainer", "outside_plugins:Missing", ":::", "json:"])
def test_what_cannot_be_imported_is_refused(name):
    with pytest.raises(UsageError, match="cannot be imported"):
        get_trainer(name)


def test_what_is_no_class_is_refused():
    with pytest.raises(UsageError, match="is not a class"):
        get_trainer("os:getcwd")


def test_a_class_that_is_no_trainer_is_refused():
    with pytest.raises(UsageError, match=r"lacks a method of rrlsam\.interfaces\.Trainer"):
        get_trainer("outside_plugins:NoTrainer")


def test_a_planner_is_no_trainer():
    with pytest.raises(UsageError, match=r"lacks a method of rrlsam\.interfaces\.Trainer"):
        get_trainer(OUTSIDE_PLANNER)
