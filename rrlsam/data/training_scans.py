"""What training looks at: the atlas, the scans, and the labels that it may see."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from rrlsam.data.atlas import Atlas, label_on_grid, make_atlas
from rrlsam.data.batches import MIRRORED, mirror_of
from rrlsam.data.sampling import TrainingScan
from rrlsam.geometry import Size3
from rrlsam.plan import Plan
from rrlsam.planning.label_offset import LabelOffset
from rrlsam.planning.prepare import PreparedAtlas
from rrlsam.preprocessing.affine import alignment_image
from rrlsam.preprocessing.preprocess import load_case, window_ct
from rrlsam.scans.dataset import Dataset, Scan
from rrlsam.scans.folds import Fold
from rrlsam.scans.scan_checks import read_own_label
from rrlsam.scans.volume import to_canonical


@dataclass(frozen=True, kw_only=True)
class OwnLabel:
    """The label of a training scan, as it is to be read."""

    scan: Scan
    shift_vox: Size3
    """By how much it has to be moved to fit its image, axis order z, y, x of the canonical scan."""


def own_labels(dataset: Dataset, fold: Fold, further: Mapping[str, LabelOffset], plan: Plan) -> dict[str, OwnLabel]:
    """Labels that training compares their own scans with, by case; mirror images are cases of their own.

    None if there is but one, which is warped to all scans.
    """
    if len(fold.atlases) == 1 and plan.reflection is None:
        return {}
    shifts = {case: offset.shift_vox for case, offset in further.items()}
    shifts[fold.atlases[0]] = plan.atlas_label_shift_vox
    labels = {case: OwnLabel(scan=dataset.scan(case), shift_vox=shifts[case]) for case in fold.atlases}
    return labels if plan.reflection is None else labels | {mirror_of(case): label for case, label in labels.items()}


def load_atlas(dataset: Dataset, prepared: PreparedAtlas, plan: Plan) -> Atlas:
    """The atlas that all scans are registered to."""
    case = plan.atlases[0]
    stored = load_case(prepared.cases, case)
    picture = alignment_image(stored.array, stored.geometry)
    label = to_canonical(read_own_label(dataset.scan(case)))
    return make_atlas(stored, label, plan, prepared.fingerprint.foreground_intensity, picture)


def load_scan(case: str, prepared: PreparedAtlas, plan: Plan, atlas: Atlas, label: OwnLabel | None) -> TrainingScan:
    """A prepared scan, with its label brought to the atlas grid if training may see it."""
    own, reflection = case.removeprefix(MIRRORED), plan.reflection if case.startswith(MIRRORED) else None
    stored = load_case(prepared.cases, own)
    to_case = np.array(prepared.affines[own].matrix)
    if reflection is not None:
        to_case = to_case @ reflection.world
    on_grid = None
    if label is not None:
        canonical = to_canonical(read_own_label(label.scan))
        on_grid = label_on_grid(canonical, label.shift_vox, atlas.grid, len(plan.labels.declared), to_case)
        if reflection is not None:
            on_grid = torch.tensor(reflection.swapped, dtype=on_grid.dtype)[on_grid.long()]
    array = window_ct(stored.array, plan.data, atlas.foreground)
    return TrainingScan(image=torch.from_numpy(array), geometry=stored.geometry, atlas_to_case=to_case, label=on_grid)
