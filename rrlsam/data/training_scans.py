"""What training looks at: the atlas, the scans, and the labels that it may see."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rrlsam.data.atlas import Atlas, label_on_grid, make_atlas
from rrlsam.data.batches import MIRRORED, mirror_of
from rrlsam.data.sampling import ScanCache, TrainingScan
from rrlsam.geometry import Reflection, Size3
from rrlsam.plan import Plan
from rrlsam.planning.folds import Fold
from rrlsam.planning.label_offset import LabelOffset
from rrlsam.planning.prepare import PreparedAtlas
from rrlsam.preprocessing.affine import alignment_image
from rrlsam.preprocessing.preprocess import load_case, window_ct
from rrlsam.scans.dataset import Dataset, Scan
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

    Empty if there is but one label and no reflection: it is then warped to all scans.
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


def training_scans(prepared: PreparedAtlas, plan: Plan, atlas: Atlas, labels: Mapping[str, OwnLabel]) -> ScanCache:
    """Prepared scans and, if the plan has a reflection, their mirror images; `labels`: those that training may see."""

    def load(case: str) -> TrainingScan:
        label = labels.get(case)
        if case.startswith(MIRRORED) and plan.reflection is not None:
            return _mirror_image(scans[mirror_of(case)], plan.reflection, plan, atlas, label)
        stored, to_case = load_case(prepared.cases, case), np.array(prepared.affines[case].matrix)
        image = torch.from_numpy(window_ct(stored.array, plan.data, atlas.foreground))
        own = None if label is None else _on_atlas_grid(label, to_case, plan, atlas)
        uncut = stored.info.canonical
        return TrainingScan(image=image, geometry=stored.geometry, atlas_to_case=to_case, uncut=uncut, label=own)

    scans = ScanCache(load)
    return scans


def _mirror_image(
    scan: TrainingScan, reflection: Reflection, plan: Plan, atlas: Atlas, label: OwnLabel | None
) -> TrainingScan:
    """The same voxels, seen in the mirror; left and right are swapped in its label."""
    to_case = scan.atlas_to_case @ reflection.world
    if label is None:
        return replace(scan, atlas_to_case=to_case, label=None)
    own = _on_atlas_grid(label, to_case, plan, atlas)
    swapped = torch.tensor(reflection.swapped, dtype=own.dtype)[own.long()]
    return replace(scan, atlas_to_case=to_case, label=swapped)


def _on_atlas_grid(label: OwnLabel, to_case: np.ndarray, plan: Plan, atlas: Atlas) -> Int[Tensor, "z y x"]:
    canonical = to_canonical(read_own_label(label.scan))
    return label_on_grid(canonical, label.shift_vox, atlas.grid, len(plan.labels.declared), to_case)
