"""Which scan to label, before anyone has labelled anything: the one from which all others are least deformed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float
from torch.nn import functional as F

from rrlsam.affine import align, alignment_image, unmoved
from rrlsam.data.batches import View
from rrlsam.data.sampling import inside_mask, sample_affine
from rrlsam.engine.device import Device
from rrlsam.errors import BadInputError, RrlsamError
from rrlsam.fingerprint import signature_distances
from rrlsam.geometry import geometry_of, index_map
from rrlsam.jsonio import record
from rrlsam.normalize import zscore
from rrlsam.predict import InputScan
from rrlsam.progress import Progress
from rrlsam.register import checked
from rrlsam.stages.refinement import refine
from rrlsam.volume import read_channels

ITERATIONS = 15
"""Steps of a coarse registration at each resolution."""
_KEPT = 16
"""Longest axis of the deformations that are compared: what is finer hardly changes their distance."""
_THUMBNAIL = (16, 16, 16)


@record
class Candidate:
    """One scan as an atlas."""

    case: str
    rank: int
    """1: label this one first."""
    distance_mm: float
    """Mean over all other scans of how far, in the mean square, their deformations lie from this scan's."""
    alignment: str
    """How it was aligned with the others: affine or centre."""


@record
class Suggestion:
    """All scans, best first."""

    candidates: tuple[Candidate, ...]
    failures: dict[str, str]
    """Case to reason, for scans that cannot be read or registered."""


@dataclass(frozen=True, kw_only=True)
class _Coarse:
    """A scan as the comparison sees it."""

    case: str
    picture: sitk.Image


def suggest_atlases(
    scans: Sequence[InputScan], n: int, device: Device, progress: Progress
) -> tuple[Suggestion, dict[str, np.ndarray]]:
    """Rank scans by how well they will serve as atlas, the first `n` together; also each one's picture (z, y, x).

    Each scan is registered, coarsely, from one that looks like the others. The distance of two scans is that of their
    deformations, in mm. The first atlas has the least mean distance to all scans; each further one brings the scans
    nearest to the atlases together with those before it (greedy k-medoids). BadInputError for fewer than two scans.
    """
    coarse, failures = _read(scans, progress)
    if len(coarse) < max(2, n):
        unread = f"; left out: {', '.join(failures)}" if failures else ""
        raise BadInputError(f"{len(coarse)} scan(s) can be compared, {max(2, n)} are needed{unread}")
    reference = coarse[int(signature_distances(np.stack([_thumbnail(c) for c in coarse])).sum(1).argmin())]
    deformations, alignments = [], []
    with progress("Comparing", len(coarse)) as advance:
        for scan in coarse:
            alignment = unmoved(scan.picture) if scan is reference else align(reference.picture, scan.picture)
            deformations.append(_deformation(reference, scan, np.array(alignment.matrix), device).ravel())
            alignments.append(alignment.method)
            advance()
    distances = _distances(np.stack(deformations))
    order = ranking(distances, n)
    candidates = tuple(
        Candidate(
            case=coarse[i].case,
            rank=rank,
            distance_mm=float(distances[i].sum() / (len(coarse) - 1)),
            alignment=alignments[i],
        )
        for rank, i in enumerate(order, 1)
    )
    pictures = {scan.case: sitk.GetArrayFromImage(scan.picture) for scan in coarse}
    return Suggestion(candidates=candidates, failures=failures), pictures


def ranking(distances: Float[np.ndarray, "m m"], n: int) -> list[int]:
    """Indices, best first: `n` by greedy k-medoids, then the others by their mean distance."""
    chosen: list[int] = []
    nearest = np.full(len(distances), np.inf)
    for _ in range(min(n, len(distances))):
        costs = np.minimum(nearest, distances).sum(1)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    rest = [int(i) for i in distances.sum(1).argsort(kind="stable") if i not in chosen]
    return chosen + rest


def _read(scans: Sequence[InputScan], progress: Progress) -> tuple[list[_Coarse], dict[str, str]]:
    coarse, failures = [], {}
    with progress("Reading", len(scans)) as advance:
        for scan in scans:
            try:
                array, geometry = checked(read_channels(scan.images), scan.case)
                coarse.append(_Coarse(case=scan.case, picture=alignment_image(array, geometry)))
            except RrlsamError as error:
                failures[scan.case] = str(error)
            advance()
    return coarse, failures


def _thumbnail(scan: _Coarse) -> np.ndarray:
    image = torch.from_numpy(sitk.GetArrayFromImage(scan.picture))[None, None]
    return F.interpolate(image, size=_THUMBNAIL, mode="trilinear", align_corners=False).numpy().ravel()


def _deformation(
    reference: _Coarse, scan: _Coarse, to_scan: np.ndarray, device: Device
) -> Float[np.ndarray, "3 z y x"]:
    """How the reference is deformed into a scan beyond an affine map, in mm, on few voxels of its grid."""
    grid, own = geometry_of(reference.picture), geometry_of(scan.picture)
    matrix = index_map(grid, own, to_scan)
    still, moved = (torch.from_numpy(zscore(sitk.GetArrayFromImage(s.picture)))[None] for s in (reference, scan))
    image = sample_affine(moved, matrix, grid.shape)[None].to(device.place)
    inside = inside_mask(own.shape, matrix, grid.shape)[None].to(device.place)
    view = View(image=image, clean=image, inside=inside, start=(0, 0, 0))
    rest = torch.zeros((1, 3, *(-(-n // 2) for n in grid.shape)), device=device.place)
    z, y, x = (max(1, round(n * _KEPT / max(grid.shape))) for n in grid.shape)
    flow = refine(rest, still[None].to(device.place), view, ITERATIONS)
    displacement = F.adaptive_avg_pool3d(flow.displacement(grid.shape), (z, y, x))[0].cpu().numpy()
    return displacement * np.array(grid.spacing_mm[::-1], dtype=np.float32)[:, None, None, None]


def _distances(deformations: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m m"]:
    """Root of the mean squared length, over voxels, of the difference of two deformations."""
    differences = ((row - deformations) ** 2 for row in deformations)
    return np.stack([np.sqrt(3 * row.mean(1)) for row in differences])
