"""Fixtures of the unit tests: a plan and a training run in miniature, made without any file but the journal."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from rrlsam.data.atlas import Atlas, view_atlas
from rrlsam.data.batches import Batches
from rrlsam.data.sampling import ScanCache, TrainingScan
from rrlsam.engine.device import Device
from rrlsam.engine.fit import Run
from rrlsam.engine.journal import Journal
from rrlsam.geometry import Geometry, geometry_of, make_geometry
from rrlsam.labels import LabelScheme, Structure
from rrlsam.models.checkpoint import Progress, Provenance
from rrlsam.nets.build import build_networks
from rrlsam.plan import AugmentationPlan, DataPlan, GridPlan, NetworkPlan, Plan, StagePlan
from rrlsam.prediction.inference import Model, OnGrid
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.volume import channels_first

SIZE = (16, 16, 16)
CPU = Device("cpu", torch.float32, "for tests")
STATS = ChannelStats(
    mean=50.0, std=20.0, minimum=0.0, percentile_00_5=0.0, median=50.0, percentile_99_5=200.0, maximum=250.0
)


def plan_in_miniature(**changes) -> Plan:
    """A plan of 16^3 voxels, two levels of 4 and 8 channels, two classes and the background."""
    stage = StagePlan(iterations=2, learning_rate=1e-2, batch_size=1)
    plan = Plan(
        schema=1,
        planner="miniature",
        dataset="Dataset001_Tiny",
        channel_names=("MRI",),
        labels=LabelScheme(
            n_classes=3,
            structures=(Structure(name="shell", values=(1,)), Structure(name="core", values=(2,))),
            regions_class_order=None,
            ignore=None,
        ),
        atlases=("atlas",),
        data=DataPlan(spacing_mm=(1.0, 1.0, 1.0), normalization=("zscore",), normalize_inside_nonzero=(False,)),
        grid=GridPlan(start_vox=(0, 0, 0), size_vox=SIZE, registration_size_vox=SIZE, patch_vox=SIZE),
        network=NetworkPlan(widths=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3), (3, 3, 3))),
        distillation=stage,
        joint=stage,
        mutual=stage,
        rounds=1,
        augmentation=AugmentationPlan(rotation_degrees=10.0, scale=0.1, mirror_axes=(2,)),
        time_budget_s=None,
    )
    return dataclasses.replace(plan, **changes)


def provenance_of(cases: tuple[str, ...], fold: str = "all") -> Provenance:
    """Of a training without a teacher that learnt from the first case's label."""
    return Provenance(
        trainer="default",
        fold=fold,
        seed=0,
        teacher="none",
        ablations=(),
        training_cases=cases,
        labelled_cases=cases[:1],
        general_encoder="none",
        files="",
    )


@pytest.fixture(scope="session")
def make_provenance() -> Callable[..., Provenance]:
    """provenance_of."""
    return provenance_of


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """plan_in_miniature: fields of the plan may be given."""
    return plan_in_miniature


@pytest.fixture
def identity_grid_of() -> Callable[[tuple[int, int, int]], Geometry]:
    """A grid of 1 mm voxels at the world's origin."""
    return lambda shape: make_geometry(shape, np.eye(4))


@pytest.fixture
def training_scans(phantoms) -> Callable[..., dict[str, TrainingScan]]:
    """The atlas and three scans that lie on its grid, a channel or more each."""

    def make(channels: int = 1, size: tuple[int, int, int] = SIZE) -> dict[str, TrainingScan]:
        scans = {}
        for seed, case in enumerate(("atlas", "b", "c", "d")):
            image, _ = phantoms.phantom(seed, size, channels=channels)
            scans[case] = TrainingScan(
                image=torch.from_numpy((image - 50) / 40),
                geometry=make_geometry(size, np.eye(4)),
                atlas_to_case=np.eye(4),
            )
        return scans

    return make


@pytest.fixture
def make_atlas_in_miniature(phantoms) -> Callable[[Plan], Atlas]:
    """The un-warped phantom as the atlas of a plan; with an ignore label, it fills the first three slices."""

    def make(plan: Plan) -> Atlas:
        size = plan.grid.size_vox
        image, label = phantoms.phantom(0, size, channels=len(plan.channel_names))
        if plan.labels.ignore is not None:
            label[:3] = plan.labels.ignore
        grid = make_geometry(size, np.eye(4))
        return Atlas(
            case="atlas",
            grid=grid,
            image=torch.from_numpy((image - 50) / 40)[None],
            label=torch.from_numpy(label.astype(np.int16))[None],
            foreground=(STATS,) * len(plan.channel_names),
            alignment_image=torch.from_numpy(image[0]),
            alignment_geometry=grid,
        )

    return make


@pytest.fixture
def make_run(tmp_path: Path, training_scans, make_atlas_in_miniature) -> Iterator[Callable[..., Run]]:
    """A training run at its beginning; keyword arguments are fields of the plan."""
    journals = []

    def make(**changes) -> Run:
        plan = plan_in_miniature(**changes)
        atlas = make_atlas_in_miniature(plan)
        scans = training_scans(len(plan.channel_names), plan.grid.size_vox)
        cases = tuple(scans)
        journals.append(Journal(tmp_path / "fold_all" / "metrics.jsonl"))
        return Run(
            plan=plan,
            provenance=provenance_of(cases),
            atlases=(atlas,),
            atlas=view_atlas(atlas, plan),
            nets=build_networks(plan, seed=0),
            batches=Batches(cases, ScanCache(scans.__getitem__), atlas.grid, plan.grid, plan.augmentation, seed=0),
            device=CPU,
            folder=tmp_path / "fold_all",
            journal=journals[-1],
            progress=Progress(finished=(), stage="", iteration=0, optimizer=None, journal_size=0),
        )

    yield make
    for journal in journals:
        journal.close()


@pytest.fixture
def weights_of() -> Callable[[nn.Module], dict[str, torch.Tensor]]:
    """A copy of a module's tensors, to compare with later."""
    return lambda module: {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Threshold(Model):
    """Says 1 above 50 and 2 above 150, on the scan's own grid; has learnt nothing."""

    def __init__(self, plan: Plan, alignment: str, likeness: float) -> None:
        self.plan = plan
        self._says = {"alignment": alignment, "likeness": likeness}

    def predict(
        self,
        image: sitk.Image,
        *,
        average: bool = True,
        overlap: float = 0.5,
        refinement_iterations: int | None = None,
        joint: bool = True,
    ) -> OnGrid:
        array = torch.from_numpy(channels_first(image)[0].copy())
        label = (array > 50).long() + (array > 150).long()
        one_hot = torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float()
        return OnGrid(
            grid=geometry_of(image),
            atlas_to_case=np.eye(4),
            probabilities=one_hot,
            displacement=torch.zeros(1, 3, *label.shape),
            image_displacement=torch.zeros(1, 3, *label.shape),
            atlas_label=one_hot[None],
            **self._says,
        )


@pytest.fixture
def threshold_model() -> Callable[..., Model]:
    """Makes a model that has learnt nothing; for a plan, else for the one in miniature."""

    def make(plan: Plan | None = None, *, alignment: str = "centre", likeness: float = -0.3) -> Model:
        return Threshold(plan or plan_in_miniature(), alignment, likeness)

    return make
