"""Which scan to label, before anyone has labelled anything: the one to which others are registered best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float

from rrlsam.data.sampling import sample_affine
from rrlsam.errors import BadInputError, RrlsamError, listed
from rrlsam.geometry import geometry_of, index_map
from rrlsam.nets.separable import smoothed
from rrlsam.planning.extract import thumbnail
from rrlsam.planning.fingerprint import medoids, signature_distances
from rrlsam.planning.trials import TRIED, find_services
from rrlsam.preprocessing.affine import align, alignment_image, unmoved
from rrlsam.registration.register import checked
from rrlsam.scans.dataset import Scan
from rrlsam.scans.inputs import InputScan
from rrlsam.scans.volume import read_telling
from rrlsam.system.isolation import one_case
from rrlsam.system.jsonio import record
from rrlsam.system.progress import Progress

SIGMA = 2.0
"""Blur of the compared images, in voxels of pictures with at most 64 on an axis: their make-up counts, not detail."""


@record
class Candidate:
    """One scan as an atlas."""

    case: str
    rank: int
    """1: label this one first."""
    service: float | None
    """Local correlation, about 0 to 1, that a registration is expected to reach between scans like this one; null: not
    tried."""
    distance: float
    """Mean over all other scans of 1 - correlation of the aligned, blurred images; 0: all alike, 2: opposite."""
    alignment: str
    """How it was aligned with the others: affine or centre."""


@record
class Suggestion:
    """All scans, best first."""

    candidates: tuple[Candidate, ...]
    failures: dict[str, str]
    """Case to reason, for scans that cannot be read or compared."""


@dataclass(frozen=True, kw_only=True)
class _Coarse:
    """A scan as the comparison sees it."""

    scan: InputScan
    picture: sitk.Image

    @property
    def case(self) -> str:
        """Its name."""
        return self.scan.case


def suggest_atlases(scans: Sequence[InputScan], n: int, progress: Progress) -> tuple[Suggestion, dict[str, np.ndarray]]:
    """Rank scans by how well they will serve as atlas, the first `n` together; also each one's picture (z, y, x).

    All scans are aligned affinely with one that looks like the others, blurred and correlated (first channels). Those
    nearest to all others, TRIED at most, are registered in pairs: the first atlas is the one with the best `services`.
    Each further one brings the scans nearest to the atlases together with those before it (greedy k-medoids).
    BadInputError for fewer than two scans.
    """
    coarse, failures = _read(scans, progress)
    if len(coarse) < max(2, n):
        unread = f"; left out: {listed(list(failures))}" if failures else ""
        raise BadInputError(f"{len(coarse)} scan(s) can be compared, {max(2, n)} are needed{unread}")
    reference = coarse[
        int(signature_distances(np.stack([thumbnail(c.picture).ravel() for c in coarse])).sum(1).argmin())
    ]
    aligned, methods = [], []
    with progress("Comparing", len(coarse)) as advance:
        for scan in coarse:
            found = unmoved(scan.picture) if scan is reference else align(reference.picture, scan.picture)
            aligned.append(_aligned(reference, scan, np.array(found.matrix)).ravel())
            methods.append(found.method)
            advance()
    distances = signature_distances(np.stack(aligned))
    service = _tried(coarse, distances, progress)
    candidates = tuple(
        Candidate(
            case=coarse[i].case,
            rank=rank,
            service=None if np.isnan(service[i]) else float(service[i]),
            distance=float(distances[i].sum() / (len(coarse) - 1)),
            alignment=methods[i],
        )
        for rank, i in enumerate(ranking(distances, service, n), 1)
    )
    pictures = {scan.case: sitk.GetArrayFromImage(scan.picture) for scan in coarse}
    return Suggestion(candidates=candidates, failures=failures), pictures


def ranking(distances: Float[np.ndarray, "m m"], service: Float[np.ndarray, " m"], n: int) -> list[int]:
    """Indices, best first: the best service, with it `n` by greedy k-medoids, the others by their service.

    Scans that were not tried (NaN) come last. Ties go by the mean distance.
    """
    by_service = [int(i) for i in np.lexsort((distances.sum(1), -service))]  # NaN last
    first = by_service[0]
    order = [first, *(i for i in range(len(service)) if i != first)]
    chosen = [order[i] for i in medoids(distances[np.ix_(order, order)], n, given=1)]
    return chosen + [i for i in by_service if i not in chosen]


def _tried(coarse: Sequence[_Coarse], distances: Float[np.ndarray, "m m"], progress: Progress) -> np.ndarray:
    """The service of the scans most like all others, found by registering them with each other; NaN for the rest."""
    tried = np.sort(distances.sum(1).argsort(kind="stable")[:TRIED])
    scans = [Scan(case=scan.case, images=scan.images, repairs=scan.repairs) for scan in (coarse[i].scan for i in tried)]
    service = np.full(len(coarse), np.nan)
    service[tried] = find_services(scans, progress)
    return service


def _read(scans: Sequence[InputScan], progress: Progress) -> tuple[list[_Coarse], dict[str, str]]:
    coarse, failures = [], {}
    with progress("Reading", len(scans)) as advance:
        for scan in scans:
            try:
                with one_case(scan.case):
                    array, geometry = checked(read_telling(scan.images, scan.repairs), scan.case)
                    coarse.append(_Coarse(scan=scan, picture=alignment_image(array, geometry)))
            except RrlsamError as error:
                failures[scan.case] = str(error)
            advance()
    return coarse, failures


def _aligned(reference: _Coarse, scan: _Coarse, to_scan: np.ndarray) -> Float[np.ndarray, "z y x"]:
    """A scan's picture on the reference's grid, blurred."""
    grid, own = geometry_of(reference.picture), geometry_of(scan.picture)
    image = torch.from_numpy(sitk.GetArrayFromImage(scan.picture))[None]
    return smoothed(sample_affine(image, index_map(grid, own, to_scan), grid.shape)[None], SIGMA)[0, 0].numpy()
