"""Alignments of all scans with an atlas, kept on disk for as long as the scans do not change."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from rrlsam.errors import listed
from rrlsam.preprocessing.affine import Alignment, unmoved
from rrlsam.preprocessing.nearer_looks import Target, align_closely
from rrlsam.preprocessing.preprocess import StoredCase, load_case
from rrlsam.system.jsonio import load_or_none, load_sealed, record, save_sealed
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress

SCHEMA = 2

_log = logging.getLogger(__name__)


@record
class StoredAffine:
    """One alignment, and of what."""

    scan: str
    """`_identity` of the scan."""
    alignment: Alignment


@record
class StoredAffines:
    """Contents of affines.json."""

    schema: int
    target: str
    """`_identity` of the atlas, and of what its target was made by."""
    scans: dict[str, StoredAffine]


def prepare_affines(
    atlas: str,
    target: Callable[[], Target],
    made_by: object,
    stored: Mapping[str, StoredCase],
    cases: Path,
    path: Path,
    *,
    workers: int | None,
    progress: Progress,
) -> dict[str, Alignment]:
    """Align every scan with the atlas (atlas world to scan world); alignments of unchanged scans are kept.

    `atlas`: its case; `target`: makes its pictures, if any scan is missing; `made_by`: what they depend on besides the
    prepared atlas. What was aligned before an error or a stop is kept, too.
    """
    previous = load_or_none(StoredAffines, path, load_sealed)
    key = _identity(stored[atlas], made_by)
    known = previous.scans if previous and (previous.schema, previous.target) == (SCHEMA, key) else {}
    scans = {case: _identity(stored[case]) for case in stored}
    found = {case: known[case] for case in stored if case in known and known[case].scan == scans[case]}
    missing = {case: case for case in stored if case not in found}
    if missing:
        pictures = target()

        def align_one(case: str) -> None:
            if case == atlas:
                alignment = unmoved(pictures.whole)
            else:
                loaded = load_case(cases, case)
                alignment = align_closely(pictures, loaded.array, loaded.geometry)
            found[case] = StoredAffine(scan=scans[case], alignment=alignment)

        try:
            for_each(align_one, missing, "Alignment", workers=workers, progress=progress)
        finally:
            ordered = {case: found[case] for case in stored if case in found}
            save_sealed(StoredAffines(schema=SCHEMA, target=key, scans=ordered), path)
        _report_fallbacks({case: found[case].alignment for case in missing})
    return {case: found[case].alignment for case in stored}


def _identity(case: StoredCase, *made_by: object) -> str:
    """SHA-256 of a prepared scan's voxels, where they lie, and what else is given."""
    return hashlib.sha256(repr((case.payload, case.stored, *made_by)).encode()).hexdigest()


def _report_fallbacks(made: Mapping[str, Alignment]) -> None:
    shifted = sorted(case for case, alignment in made.items() if alignment.method == "centre")
    if shifted:
        _log.info("%d scan(s) were only shifted onto the atlas: %s", len(shifted), listed(shifted))
