"""Whatever the data: a valid plan, within the memory and parameter limits, that sees all structures."""

import importlib
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrlsam.geometry import Size3, Vector3, index_map, make_geometry
from rrlsam.labels import LabelScheme
from rrlsam.plan import MAX_ENCODER_PARAMETERS, check_plan
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint
from rrlsam.registry import get_planner

one_shot = importlib.import_module("rrlsam.planners.one_shot")
make = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "refresh.py"))
Data = tuple[Fingerprint, AtlasFingerprint, LabelScheme]


@st.composite
def sizes(draw: st.DrawFn) -> Size3:
    z, y, x = (draw(st.integers(16, 700)) for _ in range(3))
    return (z, y, x)


@st.composite
def spacings(draw: st.DrawFn) -> Vector3:
    z, y, x = (draw(st.floats(0.3, 3.0)) for _ in range(3))
    finest = min(z, y, x)
    z, y, x = (min(s, 10 * finest) for s in (z, y, x))
    return (z, y, x)


@st.composite
def data_sets(draw: st.DrawFn) -> Data:
    channels = tuple(draw(st.lists(st.sampled_from(["CT", "T1", "noNorm"]), min_size=1, max_size=4)))
    scans = [make["scan"](draw(sizes()), draw(spacings())) for _ in range(draw(st.integers(1, 3)))]
    atlas = draw(st.sampled_from(scans))
    start, stop = [], []
    for n in atlas.size_vox:
        start.append(draw(st.integers(0, n - 1)))
        stop.append(draw(st.integers(start[-1] + 1, n)))
    atlas = make["atlas_of"](atlas.size_vox, atlas.spacing_mm, tuple(start), tuple(stop))
    return make["fingerprint_of"](scans, channels=channels), atlas, make["labels_of"](draw(st.integers(2, 40)))


@settings(max_examples=150, deadline=None)
@given(data=data_sets(), memory=st.floats(0.5, 80.0), planner=st.sampled_from(["default", "low_memory"]))
def test_every_plan_is_valid_and_within_limits(data: Data, memory: float, planner: str):
    plan = get_planner(planner).plan(*data, gpu_memory_target_gb=memory, time_budget_s=None)
    assert check_plan(plan, source="planned") is plan
    network, grid, n_classes = plan.network, plan.grid, plan.labels.n_classes
    parameters = one_shot.encoder_parameters(len(plan.channel_names), network.widths, network.kernels)
    assert parameters <= MAX_ENCODER_PARAMETERS
    parts = [grid.patch_vox] if grid.whole else [grid.patch_vox, grid.registration_size_vox]
    needed = sum(one_shot.training_memory_gb(size, network, n_classes) for size in parts)
    assert needed * plan.joint.batch_size <= memory
    bottleneck = np.array(grid.registration_size_vox) // np.prod(network.strides, axis=0)
    assert bottleneck.prod() > 1, "an instance norm needs more than one voxel"


@settings(max_examples=60, deadline=None)
@given(data=data_sets(), memory=st.floats(0.5, 80.0))
def test_the_grid_holds_every_structure(data: Data, memory: float):
    fingerprint, atlas, labels = data
    plan = get_planner("default").plan(fingerprint, atlas, labels, gpu_memory_target_gb=memory, time_budget_s=None)
    canonical = make_geometry(atlas.size_vox, np.diag([*atlas.spacing_mm[::-1], 1.0]))
    resampled = canonical.with_spacing(plan.data.spacing_mm)
    corners = np.array([atlas.structures[0].box_start[::-1], atlas.structures[0].box_stop[::-1]]) - 0.5
    there = (np.c_[corners, [1, 1]] @ index_map(canonical, resampled).T)[:, :3] + 0.5 - plan.grid.start_vox[::-1]
    # The field of view is rounded to whole voxels, half of which may be lost on either side.
    assert (there[0] >= -0.5 - 1e-6).all()
    assert (there[1] <= np.array(plan.grid.size_vox[::-1]) + 0.5 + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(data=data_sets())
def test_the_memory_that_a_refusal_names_is_enough(data: Data):
    planner = get_planner("default")
    with pytest.raises(one_shot.ResourceError, match=r"smallest that would do is [\d.]+ GB") as refused:
        planner.plan(*data, gpu_memory_target_gb=1e-6, time_budget_s=None)
    enough = float(str(refused.value).split()[-2])
    check_plan(planner.plan(*data, gpu_memory_target_gb=enough, time_budget_s=None), source="planned")
    with pytest.raises(one_shot.ResourceError, match="smallest"):
        planner.plan(*data, gpu_memory_target_gb=enough - 0.002, time_budget_s=None)
