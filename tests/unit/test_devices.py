"""No operation of the method mixes tensors of two devices: checked on torch's meta device, so without a GPU."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rrlsam.data.atlas import Atlas, view_atlas
from rrlsam.data.batches import Batches, mirror_of
from rrlsam.data.sampling import ScanCache, TrainingScan
from rrlsam.geometry import Reflection, make_geometry
from rrlsam.labels import LabelScheme, Structure
from rrlsam.nets.build import build_networks
from rrlsam.plan import GridPlan, Plan
from rrlsam.prediction.joint_refinement import jointly_refined
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.stages import refinement
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.mutual_learning import MutualLearning
from rrlsam.stages.pseudo_labels import class_prior

META = torch.device("meta")
EDGE, CLASSES = (16, 16, 16), 18
ACROSS = ((-1.0, 0.0, 0.0, 15.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
STATS = ChannelStats(mean=0.0, std=1.0, minimum=0.0, percentile_00_5=0.0, median=0.0, percentile_99_5=1.0, maximum=1.0)
WHOLE = GridPlan(start_vox=(0, 0, 0), size_vox=EDGE, registration_size_vox=EDGE, patch_vox=EDGE)
PATCHES = GridPlan(start_vox=(0, 0, 0), size_vox=EDGE, registration_size_vox=(8, 8, 8), patch_vox=(8, 16, 8))


class OneDevice(TorchDispatchMode):
    """Fails where an operation other than a copy meets tensors of two devices; numbers in a tensor may meet any."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor) and leaf.dim()]
        copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
        assert copies or len({tensor.device.type for tensor in tensors}) < 2, f"{func} meets two devices"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the meta device cannot do: tell a value, and mixed precision."""
    monkeypatch.setattr(Tensor, "__float__", lambda tensor: 1.0)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def test_the_check_finds_two_devices():
    with OneDevice(), pytest.raises(AssertionError, match="meets two devices"):
        torch.add(torch.zeros(3, device=META), torch.zeros(3))


@pytest.mark.parametrize(
    ("grid", "ignore", "batch_size"),
    [(WHOLE, False, 1), (WHOLE, True, 2), (PATCHES, False, 2), (PATCHES, True, 1)],
    ids=["whole", "whole-ignore", "patches", "patches-ignore"],
)
def test_stages_and_refinement_stay_on_their_device(
    make_plan: Callable[..., Plan], grid: GridPlan, ignore: bool, batch_size: int
):
    labels = LabelScheme(
        n_classes=CLASSES,
        structures=tuple(Structure(name=f"{value}", values=(value,)) for value in range(1, CLASSES)),
        regions_class_order=None,
        ignore=CLASSES if ignore else None,
    )
    mirror = Reflection(matrix=ACROSS, swapped=(0, 1, *(value ^ 1 for value in range(2, CLASSES))))
    plan = make_plan(labels=labels, grid=grid, reflection=None if ignore else mirror)
    batches, atlas = drawn_from(plan)
    view = view_atlas(atlas, plan)
    batches.fields = {case: torch.zeros((1, 3, *view.compared.shape[2:])).half() for case in batches.registered}
    fine, coarse = (batches.draw("s", 0, batch_size, augment=True, patches=patches) for patches in (True, False))
    batches.fields = None
    deepest = [n // 2 for n in grid.registration_size_vox]
    batches.features = {case: np.zeros((256, *deepest), np.float16) for case in batches.cases}
    taught = batches.draw("s", 0, batch_size, augment=False, patches=False, compare=False)
    still = batches.plain("b").to(META)
    view, nets = view.to(META), build_networks(plan, seed=0).to(META)

    with OneDevice():
        for stage, batch in (
            (DistilSam(plan.distillation), taught),
            (JointRegSeg(plan.joint, refinement_iterations=2), coarse),
            (MutualLearning(plan.mutual, refinement_iterations=2), fine),
            (MutualLearning(plan.mutual, bilevel=True), fine),
        ):
            batch = batch.to(META)
            terms = stage.loss(nets, view.mirrored(batch.mirrored), batch)
            terms.total.backward()
            stage.after_step(nets)
            assert {term.device for term in terms.terms.values()} == {META}
        flow = refinement.refined_flow(nets, view, still, 2, autocast=contextlib.nullcontext())
        with torch.no_grad():
            if not ignore:
                assert still.compared is not None
                flow = jointly_refined(flow, view, still.compared, torch.zeros((1, CLASSES, *EDGE), device=META), 2)
            assert class_prior(view, flow.displacement(EDGE)).device == META
            assert flow.inverse().displacement(EDGE).device == META


def drawn_from(plan: Plan) -> tuple[Batches, Atlas]:
    """Three scans of noise and their mirror images; every second one brings a label."""
    geometry, random, n_values = make_geometry(EDGE, np.eye(4)), np.random.default_rng(0), len(plan.labels.declared)

    def label() -> Tensor:
        return torch.from_numpy(random.integers(0, n_values, EDGE).astype(np.int16))

    def scan() -> TrainingScan:
        image = torch.from_numpy(random.normal(size=(1, *EDGE)).astype(np.float32))
        return TrainingScan(image=image, geometry=geometry, atlas_to_case=np.eye(4))

    cases = ("a", "b", "c")
    scans = {name: scan() for case in cases for name in (case, mirror_of(case))}
    scans = {name: replace(one, label=label()) if name[-1] != "b" else one for name, one in scans.items()}
    atlas = Atlas(
        case="a",
        grid=geometry,
        image=scans["a"].image[None],
        label=label()[None],
        foreground=(STATS,),
        alignment_image=scans["a"].image[0],
        alignment_geometry=geometry,
    )
    batches = Batches(
        cases,
        ScanCache(scans.__getitem__),
        geometry,
        plan.grid,
        plan.augmentation,
        seed=0,
        labelled=("c",),
        n_labels=n_values,
        reflection=None if plan.reflection is None else plan.reflection.on_voxels(geometry),
    )
    return batches, atlas
