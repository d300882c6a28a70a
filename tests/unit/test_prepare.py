import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rrlsam.errors import BadInputError
from rrlsam.labels import LabelScheme
from rrlsam.plan import DataPlan, Plan, check_plan
from rrlsam.planning import extract
from rrlsam.planning.best_atlas import Services
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint
from rrlsam.planning.prepare import PrepareOptions, plan_and_preprocess, prepare_atlas, prepare_fingerprint
from rrlsam.preprocessing import affine_store
from rrlsam.preprocessing.affine import unmoved
from rrlsam.preprocessing.preprocess import load_case
from rrlsam.scans.dataset import load_dataset
from rrlsam.system.jsonio import load_sealed
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import rich_progress, silent


class StubPlanner:
    """Plans one fixed thing and counts how often it is asked."""

    def __init__(self, make_plan: Callable[..., Plan]) -> None:
        self.asked = 0
        self._make_plan = make_plan

    def plan(
        self,
        fingerprint: Fingerprint,
        atlas: AtlasFingerprint,
        labels: LabelScheme,
        *,
        gpu_memory_target_gb: float,
        time_budget_s: float | None,
    ) -> Plan:
        self.asked += 1
        channels = len(fingerprint.channel_names)
        return self._make_plan(
            dataset=fingerprint.dataset,
            channel_names=fingerprint.channel_names,
            labels=labels,
            atlases=(atlas.case,),
            data=DataPlan(
                spacing_mm=(1.0, 1.0, 1.0),
                normalization=("zscore",) * channels,
                normalize_inside_nonzero=(False,) * channels,
            ),
            time_budget_s=time_budget_s,
        )


@pytest.fixture
def planner(make_plan: Callable[..., Plan]) -> StubPlanner:
    return StubPlanner(make_plan)


OPTIONS = PrepareOptions(workers=2)


def _files(folder: Path, keep=lambda path: True) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and keep(p)}


def test_a_fold_is_prepared_whole(tiny, workspace, planner):
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    fold = done.folds["0"]
    atlas = done.atlases[fold.atlases[0]]
    assert atlas.fingerprint.case == fold.atlases[0]
    assert set(atlas.affines) == {scan.case for scan in tiny.scans}
    assert np.array_equal(atlas.affines[fold.atlases[0]].matrix, np.eye(4))
    assert all(load_case(atlas.cases, scan.case).array.ndim == 4 for scan in tiny.scans)
    names = {"atlas.json", "plan.json", "plan_inputs.json", "affines.json"}
    assert {p.name for p in atlas.folder.iterdir()} == names
    assert atlas.folder.parent.parent == workspace.preprocessed(tiny.name)
    (kept,) = workspace.preprocessed(tiny.name).glob("services_*.json")
    service = load_sealed(Services, kept).service
    assert set(service) == set(fold.training)
    learnt_from = [value for case, value in service.items() if case in tiny.labelled and value is not None]
    assert service[fold.atlases[0]] == max(learnt_from)


def test_a_second_run_changes_nothing_and_does_not_plan_or_align(tiny, workspace, planner, monkeypatch):
    first = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    before = _files(workspace.root("preprocessed"))
    monkeypatch.setattr(affine_store, "align_closely", None)
    assert plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS) == first
    assert _files(workspace.root("preprocessed")) == before
    assert planner.asked == 1


def test_only_a_changed_scan_is_aligned_again(tiny, workspace, planner, phantoms, monkeypatch):
    plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS, atlases=("lab_00",))
    aligned = []
    original = affine_store.align_closely
    monkeypatch.setattr(affine_store, "align_closely", lambda *a: aligned.append(1) or original(*a))
    phantoms.write_volume(phantoms.phantom(55)[0][0], tiny.scan("un_00").images[0])
    plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS, atlases=("lab_00",))
    assert len(aligned) == 1


def test_labels_of_other_cases_leave_no_trace(tiny, workspace, planner, phantoms, tmp_path):
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    before = _files(workspace.root("preprocessed"))
    noise = np.random.default_rng(0).integers(0, 3, phantoms.SIZE).astype(np.uint8)
    for scan in tiny.scans:
        if scan.label is not None and scan.case not in done.atlases:
            phantoms.write_volume(noise, scan.label)
    fresh = replace(workspace, roots={**workspace.roots, "preprocessed": tmp_path / "again"})
    plan_and_preprocess(tiny, ("0",), fresh, planner, OPTIONS)
    assert _files(tmp_path / "again") == before


def test_an_edited_plan_is_kept_until_its_inputs_change(tiny, workspace, planner, edit_json, caplog):
    caplog.set_level(logging.INFO)
    options = replace(OPTIONS, plans_name="mine")

    def prepare(**changes):
        chosen = replace(options, **changes)
        done = plan_and_preprocess(tiny, ("0",), workspace, planner, chosen, atlases=("lab_00",))
        return done.atlases["lab_00"]

    path = prepare().folder / "plan.json"
    edit_json(path, rounds=7)
    assert prepare().plan.rounds == 7
    assert "edited by hand, kept" in caplog.text
    assert prepare(gpu_memory_target_gb=4.0).plan.rounds == 1
    assert json.loads((path.parent / "plan_replaced.json").read_text())["rounds"] == 7
    edit_json(path, rounds=5)
    assert prepare(gpu_memory_target_gb=4.0, overwrite_plan=True).plan.rounds == 1
    assert planner.asked == 3
    assert json.loads((path.parent / "plan_replaced.json").read_text())["rounds"] == 7
    assert json.loads((path.parent / "plan_replaced_2.json").read_text())["rounds"] == 5


def test_an_edited_plan_that_does_not_fit_together_is_refused(tiny, workspace, planner, edit_json):
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    edit_json(next(iter(done.atlases.values())).folder / "plan.json", rounds=-1)
    with pytest.raises(
        BadInputError, match=r"plan.json: iterations, refinement_iterations and rounds must not be negative"
    ):
        plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)


@pytest.mark.parametrize("axes", [[], [0, 0], [3]])
def test_a_teacher_needs_one_to_three_axes(make_plan, axes: list[int]):
    with pytest.raises(BadInputError, match=r"teacher_axes .*one to three different axes"):
        check_plan(make_plan(teacher_axes=tuple(axes)), source="plan.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mirror_axes": (3,)}, "mirror_axes"),
        ({"mirror_axes": (2, 2)}, "mirror_axes"),
        ({"scale": -0.1}, "augmentation: rotation_degrees"),
        ({"rotation_degrees": 181.0}, "augmentation: rotation_degrees"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(make_plan, changed, message):
    plan = make_plan()
    plan = replace(plan, augmentation=replace(plan.augmentation, **changed))
    with pytest.raises(BadInputError, match=message):
        check_plan(plan, source="plan.json")


def test_a_grid_needs_three_voxels_an_axis(make_plan):
    """Folds are looked for around inner voxels."""
    size = (2, 16, 16)
    plan = make_plan()
    grid = replace(plan.grid, size_vox=size, registration_size_vox=size, patch_vox=size)
    with pytest.raises(BadInputError, match=r"grid\.size_vox \(2, 16, 16\) must be at least 3 on every axis"):
        check_plan(replace(plan, grid=grid), source="plan.json")


def test_a_plan_has_one_atlas_and_time_to_learn(make_plan):
    with pytest.raises(BadInputError, match="one case that scans are registered to, not 2"):
        check_plan(make_plan(atlases=("a", "b")), source="plan.json")
    with pytest.raises(BadInputError, match="time_budget_s must be above 0"):
        check_plan(make_plan(time_budget_s=-5.0), source="plan.json")


def test_another_atlas_is_prepared_on_demand_from_the_same_scans(tiny, workspace, planner):
    seen = prepare_fingerprint(tiny, workspace, OPTIONS)
    one = prepare_atlas(tiny, "lab_01", seen, workspace, planner, OPTIONS)
    two = prepare_atlas(tiny, "lab_02", seen, workspace, planner, OPTIONS)
    assert one.cases == two.cases
    assert one.folder != two.folder


def test_a_split_of_the_user_is_found_in_either_folder(tiny, workspace, planner):
    split = json.dumps([{"train": [], "val": ["lab_04"]}])
    beside = workspace.root("preprocessed") / tiny.name / "splits_final.json"
    beside.parent.mkdir()
    beside.write_text(split)
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    assert done.folds["0"].validation == ("lab_04",)
    (tiny.folder / "splits_final.json").write_text(split.replace("lab_04", "lab_03"))
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    assert done.folds["0"].validation == ("lab_03",)


def test_a_faulty_data_set_is_refused_before_any_work(tiny, workspace, planner):
    (tiny.folder / "imagesTr" / "loose.nii.gz").write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"(?s)has 1 error; .*loose.nii.gz"):
        plan_and_preprocess(load_dataset(tiny.folder), ("0",), workspace, planner, OPTIONS)
    assert [path.name for path in sorted(workspace.root("preprocessed").rglob("*.*"))] == ["report.json", "sound.json"]


def test_several_channels_of_ct_are_prepared(workspace, make_dataset, planner):
    folder = make_dataset(workspace.root("raw") / "Dataset002_Two", 1, 1, channels=2, spacing=(1.3, 1.0, 1.0))
    done = plan_and_preprocess(load_dataset(folder), ("all",), workspace, planner, OPTIONS)
    assert load_case(done.atlases["lab_00"].cases, "un_00").array.shape[0] == 2


def test_one_bad_item_does_not_stop_the_others():
    done = []

    def work(item: int) -> int:
        if item % 2:
            raise BadInputError(f"{item}: odd")
        done.append(item)
        return item

    with pytest.raises(BadInputError, match=r"12 of 24 cases failed:(\n  \d+: odd){10}\n  and 2 more"):
        for_each(work, {f"{i:02d}": i for i in range(24)}, "Work", workers=3, progress=silent)
    assert sorted(done) == list(range(0, 24, 2))


def test_another_failure_ends_the_work_at_once():
    started = []
    gate = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 0:
            raise ZeroDivisionError("broken")
        gate.wait(0.05)
        return item

    with pytest.raises(ZeroDivisionError, match="broken"):
        for_each(work, {str(i): i for i in range(50)}, "Work", workers=1, progress=silent)
    assert len(started) < 50


def test_results_come_in_the_order_of_the_items():
    assert list(for_each(str, {"b": 1, "a": 2}, "Work", workers=2, progress=silent).items()) == [("b", "1"), ("a", "2")]


def test_progress_without_a_terminal_is_one_line_a_task(capsys):
    with rich_progress()("Reading", 2) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == "Reading: 2 of 2 in 0 s\n"


def test_only_a_plan_is_made_if_that_is_asked_for(tiny, workspace, planner):
    done = plan_and_preprocess(tiny, ("0",), workspace, planner, replace(OPTIONS, plan_only=True))
    (atlas,) = done.atlases.values()
    assert (atlas.folder / "plan.json").is_file()
    assert not atlas.cases.exists()


def test_a_clean_fingerprint_reads_every_scan_again(tiny, workspace, planner, monkeypatch):
    plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS)
    known, look = [], extract.scan_fingerprint
    monkeypatch.setattr(extract, "scan_fingerprint", lambda scan, old: known.append(old) or look(scan, old))
    prepare_fingerprint(tiny, workspace, OPTIONS)
    assert all(known)
    prepare_fingerprint(tiny, workspace, replace(OPTIONS, clean=True))
    assert known[len(tiny.scans) :] == [None] * len(tiny.scans)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("fingerprint.json", '"std": ', '"std": 1'),
        ("rrlsamPlans/atlas_lab_00/affines.json", "1.0,", "1.5,"),
        ("rrlsamPlans/cases/*/lab_01.json", '"crop_stop": [', '"crop_stop": [1'),
    ],
)
def test_a_digit_that_changed_on_disk_is_found_and_the_entry_made_anew(tiny, workspace, planner, file, old, new):
    def prepare() -> object:
        return plan_and_preprocess(tiny, ("0",), workspace, planner, OPTIONS, atlases=("lab_00",))

    first = prepare()
    (path,) = workspace.preprocessed(tiny.name).glob(file)
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new, 1))
    assert prepare() == first
    assert path.read_text() == whole


def test_alignments_of_a_planning_that_was_stopped_are_kept(tiny, workspace, planner, monkeypatch):
    asked = []

    def align(target, array, geometry, after: int):
        asked.append(1)
        if len(asked) > after:
            raise KeyboardInterrupt
        return unmoved(target.whole)

    one_at_a_time = replace(OPTIONS, workers=1)
    monkeypatch.setattr(affine_store, "align_closely", partial(align, after=2))
    with pytest.raises(KeyboardInterrupt):
        plan_and_preprocess(tiny, ("0",), workspace, planner, one_at_a_time)
    asked.clear()
    monkeypatch.setattr(affine_store, "align_closely", partial(align, after=100))
    plan_and_preprocess(tiny, ("0",), workspace, planner, one_at_a_time)
    assert len(asked) == len(tiny.scans) - 1 - 2


def test_structures_that_the_atlas_hardly_shows_are_told(workspace, make_dataset, phantoms, planner, caplog):
    folder = make_dataset(workspace.root("raw") / "Dataset002_Rare", 1, 1)
    label = phantoms.phantom(0)[1]
    label[label == 2] = 1
    label[10, 12, 11] = 2
    phantoms.write_volume(label, folder / "labelsTr" / "lab_00.nii.gz")
    plan_and_preprocess(load_dataset(folder), ("all",), workspace, planner, replace(OPTIONS, plan_only=True))
    assert "lab_00: has 1 voxel(s) of core and can hardly teach it; choose a case that shows it" in caplog.text
    assert "of shell" not in caplog.text
