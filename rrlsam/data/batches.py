"""Training batches: a pure function of (seed, stage, iteration), so that resuming is exact."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rrlsam.data.augment import change_intensities, draw_affine, draw_mirror, mirror_matrix
from rrlsam.data.sampling import ScanCache, affine_map, affine_points, grid_to_scan, inside_at, shares_at
from rrlsam.geometry import Geometry, Size3, index_map
from rrlsam.nets.displacement import displacement_at, sample
from rrlsam.plan import AugmentationPlan, GridPlan

LABELLED_DRAWS = 8
"""Times that a scan with a label is drawn an epoch, in stages that look at labels; other scans are drawn once."""
MIRRORED = "mirrored/"
"""Before the name of a case: its mirror image."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Scans on one grid, as the networks see them and as they are."""

    image: Float[Tensor, "b c z y x"]
    """With random intensities."""
    clean: Float[Tensor, "b c z y x"]
    """Without."""
    inside: Float[Tensor, "b 1 z y x"]
    """1 inside the scan, without the empty borders that were cut off."""
    start: Size3
    """First voxel in the whole grid of the same spacing, axis order z, y, x."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scans of one step."""

    cases: tuple[str, ...]
    whole: View
    """On the whole atlas grid, as the registration sees it."""
    patch: View
    """As the segmentation sees it; the very same object as `whole` when that serves both."""
    seen: Float[Tensor, "b 1 z y x"] | None = None
    """1 where a voxel of `patch` lies in its scan's field of view, empty borders and all. None for stages that do not
    register."""
    mirrored: tuple[int, ...] = ()
    """Axes along which the scans are mirrored; the atlas has to be mirrored alike."""
    compared: View | None = None
    """On the grid on which registered images are compared, without random intensities; `whole` if that serves.
    None for stages that do not register."""
    atlas_points: Float[Tensor, "b 3 z2 y2 x2"] | None = None
    """For each voxel of `patch`, where a refined field reads the fine atlas label: voxel coordinates (x, y, z)."""
    reflected_points: Float[Tensor, "b 3 z2 y2 x2"] | None = None
    """The same by the field of the scan's mirror image, whose label has its sides swapped."""
    truth: tuple[Float[Tensor, "k z y x"] | None, ...] = ()
    """For each scan its own label on the voxels of `patch`, one-hot, the ignore class last if there is one; None for
    scans without label. Empty: no scan's label is to be looked at but the atlas's."""
    features: Float[Tensor, "b 256 zd yd xd"] | None = None
    """The teacher's features of the scans, for distillation."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        whole = view_to(self.whole, device)
        patch = whole if self.patch is self.whole else view_to(self.patch, device)
        compared = self.compared and (whole if self.compared is self.whole else view_to(self.compared, device))
        return replace(
            self,
            whole=whole,
            patch=patch,
            seen=_to(self.seen, device),
            compared=compared,
            atlas_points=_to(self.atlas_points, device),
            reflected_points=_to(self.reflected_points, device),
            truth=tuple(_to(label, device) for label in self.truth),
            features=_to(self.features, device),
        )


class Batches:
    """Draws batches of the training scans, the atlas among them."""

    def __init__(
        self,
        cases: tuple[str, ...],
        scans: ScanCache,
        grid: Geometry,
        plan: GridPlan,
        augmentation: AugmentationPlan,
        *,
        seed: int,
        labelled: tuple[str, ...] = (),
        n_labels: int = 0,
        reflection: np.ndarray | None = None,
    ) -> None:
        """`n_labels`: declared values of labels that scans bring of their own, 0: none is to be looked at;
        `labelled`: of the cases with a label those that are drawn more often.

        `reflection`: (4, 4) on voxel coordinates of the fine grid; every scan is then also registered in the mirror.
        """
        self.cases, self._scans, self._reflection = cases, scans, reflection
        self.looks = 1 if reflection is None else 2
        """How often a scan is registered: as it is, and in the mirror."""
        self.registered = self._with_mirror_images(cases)
        """What is registered with the atlas: the cases, and their mirror images."""
        self.scans_a_stage: int | None = None
        """The plan's."""
        self._labelled, self._n_labels = labelled, n_labels
        self.features: Mapping[str, np.ndarray] | None = None
        """The teacher's features (256, z, y, x) of every case, if there is a teacher."""
        self.fields: Mapping[str, Tensor] | None = None
        """Refined displacements (1, 3, z, y, x) of what a stage draws, in voxels of a grid over the whole of it."""
        self._fine, self._plan, self._augmentation, self._seed = grid, plan, augmentation, seed
        self._whole = grid if plan.whole else with_shape(grid, plan.registration_size_vox)
        self._compared = with_shape(grid, plan.comparison_size_vox)

    def draw(
        self, stage: str, iteration: int, batch_size: int, *, augment: bool, patches: bool, compare: bool = True
    ) -> Batch:
        """The batch of one iteration; the order of scans is a fresh shuffle an epoch.

        `compare`: with scans on the grid of comparison and with labels of their own, where they bring some.
        """
        group = self._group(stage) if compare else self.cases
        positions = range(iteration * batch_size, (iteration + 1) * batch_size)
        chosen = tuple(self._case(stage, position, group) for position in positions)
        randoms = [self._random(stage, "scan", position) for position in positions]
        mirrored = draw_mirror(self._random(stage, "mirror", iteration), self._augmentation) if augment else ()
        mirror = mirror_matrix(mirrored, self._fine.shape)
        placements = [self._turned(random) @ mirror if augment else mirror for random in randoms]
        looks = [self._points(placement, self._whole) for placement in placements]
        patch = whole = self._view(chosen, looks, randoms if augment else None, start=(0, 0, 0))
        if patches and not self._plan.whole:
            start = self._patch_start(self._random(stage, "patch", iteration))
            part = self._fine.box(start, [a + n for a, n in zip(start, self._plan.patch_vox, strict=True)])
            looks = [self._points(placement, part) for placement in placements]
            patch = self._view(chosen, looks, randoms if augment else None, start=start)
        compared = self._compare(chosen, placements, whole) if compare else None
        points = reflected = None
        if self.fields is not None:
            pairs = list(zip(chosen, looks, strict=True))
            points = torch.cat([self._atlas_points(case, look, mirror) for case, look in pairs])
            if self._reflection is not None:
                there = [(mirror_of(case), affine_map(self._reflection, look)) for case, look in pairs]
                reflected = torch.cat([self._atlas_points(case, look, mirror) for case, look in there])
        seen = (
            torch.cat([self._seen(case, look) for case, look in zip(chosen, looks, strict=True)]) if compare else None
        )
        truth = ()
        if compare and self._n_labels:
            truth = tuple(self._truth(case, look) for case, look in zip(chosen, looks, strict=True))
        features = None
        if self.features is not None and not augment:
            features = torch.stack([torch.from_numpy(np.asarray(self.features[c], np.float32)) for c in chosen])
        return Batch(
            cases=chosen,
            whole=whole,
            patch=patch,
            seen=seen,
            mirrored=mirrored,
            compared=compared,
            atlas_points=points,
            reflected_points=reflected,
            truth=truth,
            features=features,
        )

    def registered_by(self, stage: str, draws: int) -> tuple[str, ...]:
        """What the first `draws` draws of a stage that compares need a refined field of."""
        group = self._group(stage)
        drawn = {self._case(stage, position, group) for position in range(min(draws, len(group)))}
        if self.looks == 2:
            drawn |= {mirror_of(case) for case in drawn}
        return tuple(case for case in self.registered if case in drawn)

    def _group(self, stage: str) -> tuple[str, ...]:
        """What a stage that compares draws from, an epoch: scans with a label, and of the others `scans_a_stage`."""
        looked_at = {case.removeprefix(MIRRORED) for case in self._labelled}
        others = [case for case in self.cases if case not in looked_at]
        room = len(others) if self.scans_a_stage is None else max(1, self.scans_a_stage - len(looked_at))
        looked_at |= {others[place] for place in self._random(stage, "scans").permutation(len(others))[:room]}
        cases = tuple(case for case in self.cases if case in looked_at)
        return (*self._with_mirror_images(cases), *((LABELLED_DRAWS - 1) * self._labelled))

    def _with_mirror_images(self, cases: tuple[str, ...]) -> tuple[str, ...]:
        return cases if self.looks == 1 else (*cases, *(mirror_of(case) for case in cases))

    def plain(self, case: str) -> Batch:
        """One scan, un-augmented, on the whole registration grid."""
        still = np.eye(4)
        whole = self._view((case,), [self._points(still, self._whole)], None, start=(0, 0, 0))
        return Batch(cases=(case,), whole=whole, patch=whole, compared=self._compare((case,), [still], whole))

    def _compare(self, cases: Sequence[str], placements: Sequence[np.ndarray], whole: View) -> View:
        """The scans on the grid of comparison; `whole` itself if that is the same grid."""
        if self._compared.shape == self._whole.shape:
            return whole
        looks = [self._points(placement, self._compared) for placement in placements]
        return self._view(cases, looks, None, start=(0, 0, 0))

    def _atlas_points(
        self, case: str, points: Float[Tensor, "1 3 z y x"], mirror: np.ndarray
    ) -> Float[Tensor, "1 3 z y x"]:
        """Where the case's refined field reads the (mirrored) fine atlas, for points of the fine grid."""
        if self.fields is None:
            raise ValueError("there are no refined fields")
        moved = points + displacement_at(self.fields[case].float(), points, self._fine.shape)
        return affine_map(mirror, moved)

    def _seen(self, case: str, points: Float[Tensor, "1 3 z y x"]) -> Float[Tensor, "1 1 z y x"]:
        """1 where points of the fine grid lie in the scan, before its empty borders were cut off."""
        scan = self._scans[case]
        uncut = scan.uncut or scan.geometry
        return inside_at(affine_map(index_map(self._fine, uncut, scan.atlas_to_case), points), uncut.shape)

    def _truth(self, case: str, points: Float[Tensor, "1 3 z y x"]) -> Float[Tensor, "k z y x"] | None:
        """A scan's own label at points of the fine grid; beyond it all is background."""
        label = self._scans[case].label
        return None if label is None else shares_at(label, points, self._n_labels)

    def _case(self, stage: str, position: int, group: tuple[str, ...]) -> str:
        epoch, place = divmod(position, len(group))
        return group[self._random(stage, "order", epoch).permutation(len(group))[place]]

    def _random(self, *key: object) -> np.random.Generator:
        digest = hashlib.sha256(repr((self._seed, *key)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))

    def _turned(self, random: np.random.Generator) -> np.ndarray:
        return draw_affine(random, self._augmentation, self._fine.shape, self._fine.spacing_mm)

    def _points(self, placement: np.ndarray, seen: Geometry) -> Float[Tensor, "1 3 z y x"]:
        """Where the voxels of a grid within the fine one look: voxel coordinates (x, y, z) of the fine grid.

        `placement`: (4, 4), carries such coordinates to such.
        """
        return affine_points(seen.shape, placement @ index_map(seen, self._fine))

    def _view(
        self,
        cases: Sequence[str],
        looks: Sequence[Float[Tensor, "1 3 z y x"]],
        randoms: Sequence[np.random.Generator] | None,
        *,
        start: Size3,
    ) -> View:
        """Each scan at points of the fine grid; `randoms`: what changes intensities, None: nothing does."""
        clean, inside = [], []
        for case, look in zip(cases, looks, strict=True):
            scan = self._scans[case]
            points = affine_map(grid_to_scan(self._fine, scan), look)
            clean.append(sample(scan.image[None], points))
            inside.append(inside_at(points, tuple(scan.image.shape[1:])))
        images = clean
        if randoms is not None:
            changed = (change_intensities(c[0].numpy(), random) for c, random in zip(clean, randoms, strict=True))
            images = [torch.from_numpy(image)[None] for image in changed]
        return View(image=torch.cat(images), clean=torch.cat(clean), inside=torch.cat(inside), start=start)

    def _patch_start(self, random: np.random.Generator) -> Size3:
        room = [n - p for n, p in zip(self._plan.size_vox, self._plan.patch_vox, strict=True)]
        z, y, x = (int(random.integers(r + 1)) for r in room)
        return (z, y, x)


def mirror_of(case: str) -> str:
    """The key of a case's mirror image, and back; no case has a slash in its name."""
    return case.removeprefix(MIRRORED) if case.startswith(MIRRORED) else MIRRORED + case


def with_shape(geometry: Geometry, shape: Size3) -> Geometry:
    """The same field of view cut into another number of voxels."""
    return geometry.with_spacing([e / n for e, n in zip(geometry.extent_mm, shape, strict=True)])


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def view_to(view: View, device: torch.device) -> View:
    """The view on another device."""
    image, clean, inside = (t.to(device, non_blocking=True) for t in (view.image, view.clean, view.inside))
    return View(image=image, clean=clean, inside=inside, start=view.start)
