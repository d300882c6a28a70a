"""Alignments of all scans with an atlas, kept on disk for as long as the scans do not change."""

import logging
from collections.abc import Mapping
from pathlib import Path

import SimpleITK as sitk

from rrlsam.errors import listed
from rrlsam.preprocessing.affine import Alignment, align, alignment_image, unmoved
from rrlsam.preprocessing.preprocess import StoredCase, load_case
from rrlsam.system.jsonio import load_or_none, load_sealed, record, save_sealed
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress

SCHEMA = 1

_log = logging.getLogger(__name__)


@record
class StoredAffine:
    """One alignment, and of which array."""

    payload: str
    """SHA-256 of the scan's prepared array."""
    alignment: Alignment


@record
class StoredAffines:
    """Contents of affines.json."""

    schema: int
    atlas: str
    """SHA-256 of the atlas's prepared array."""
    scans: dict[str, StoredAffine]


def prepare_affines(
    atlas: str, stored: Mapping[str, StoredCase], cases: Path, path: Path, *, workers: int | None, progress: Progress
) -> dict[str, Alignment]:
    """Align every scan with the atlas (atlas world to scan world); alignments of unchanged scans are kept.

    What was aligned before an error or a stop is kept, too.
    """
    previous = load_or_none(StoredAffines, path, load_sealed)
    known = previous.scans if previous and (previous.schema, previous.atlas) == (SCHEMA, stored[atlas].payload) else {}
    found = {case: known[case] for case in stored if case in known and known[case].payload == stored[case].payload}
    missing = {case: case for case in stored if case not in found}
    if missing:
        fixed = _alignment_image(cases, atlas)

        def align_one(case: str) -> None:
            alignment = unmoved(fixed) if case == atlas else align(fixed, _alignment_image(cases, case))
            found[case] = StoredAffine(payload=stored[case].payload, alignment=alignment)

        try:
            for_each(align_one, missing, "Alignment", workers=workers, progress=progress)
        finally:
            ordered = {case: found[case] for case in stored if case in found}
            save_sealed(StoredAffines(schema=SCHEMA, atlas=stored[atlas].payload, scans=ordered), path)
        _report_fallbacks({case: found[case].alignment for case in missing})
    return {case: found[case].alignment for case in stored}


def _alignment_image(cases: Path, case: str) -> sitk.Image:
    loaded = load_case(cases, case)
    return alignment_image(loaded.array, loaded.geometry)


def _report_fallbacks(made: Mapping[str, Alignment]) -> None:
    shifted = sorted(case for case, alignment in made.items() if alignment.method == "centre")
    if shifted:
        _log.info("%d scan(s) were only shifted onto the atlas: %s", len(shifted), listed(shifted))
