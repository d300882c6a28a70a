"""A teacher that knows the training scans' true labels: it only tells whether any teacher could help."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from teachers import digest, projected
from torch import Tensor
from torch.nn import functional

from rrlsam.data.batches import Batches
from rrlsam.data.training_scans import OwnLabel, load_atlas, training_scans
from rrlsam.engine.device import Device
from rrlsam.geometry import Size3
from rrlsam.planning.prepare import PreparedAtlas
from rrlsam.scans.dataset import Dataset, Scan
from rrlsam.system.storage import array_sha256
from rrlsam.teacher.teaching import TeacherSource


class TrueLabels:
    """Recognises scans by their content."""

    def __init__(self, labels: dict[str, Int[Tensor, "z y x"]]) -> None:
        """`labels`: by the hash of the scan on the same grid."""
        self._labels = labels

    def features(self, volume: Float[Tensor, "1 c z y x"], grid: Size3) -> Float[Tensor, "1 256 gz gy gx"]:
        """Projections of the true classes of each cell's voxels."""
        one_hot = functional.one_hot(self._labels[array_sha256(volume.numpy())].long())
        return projected(one_hot.movedim(-1, 0)[None], grid)

    def seconds_per_slice(self, volume: Float[Tensor, "1 c z y x"]) -> float:
        """Next to nothing."""
        return 1e-4


def true_labels(dataset: Dataset, prepared: PreparedAtlas, truth: Path) -> TeacherSource:
    """The teacher of a prepared data set, given the folder of labels CASE.ENDING of all its scans."""

    def build(side_px: int, device: Device) -> TrueLabels:
        plan = prepared.plan
        if not plan.grid.whole:
            raise SystemExit("true labels as a teacher need a grid that is seen whole")
        atlas = load_atlas(dataset, prepared, plan)

        cases, labels = tuple(scan.case for scan in dataset.scans), {}
        for case in cases:
            path = truth / f"{case}{dataset.file_ending}"
            if not path.is_file():
                raise SystemExit(f"{path}: no such label; --truth needs those of all training scans")
            own = Scan(case=case, images=(), label=path)
            labels[case] = OwnLabel(scan=own, shift_vox=plan.atlas_label_shift_vox)
        scans = training_scans(prepared, plan, atlas, labels)
        batches = Batches(cases, scans, atlas.grid, plan.grid, plan.augmentation, seed=0)
        found: dict[str, Tensor] = {}
        for case in cases:
            label = scans[case].label
            if label is None or tuple(label.shape) != plan.grid.size_vox:
                raise SystemExit(f"{case}: its label is not on the atlas grid")
            found[array_sha256(batches.plain(case).whole.image.numpy())] = torch.as_tensor(label)
        return TrueLabels(found)

    return TeacherSource(teacher_id=digest("true labels"), build=build, side_px=1)
