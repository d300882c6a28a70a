"""Alignments of all scans with an atlas, kept on disk for as long as the scans do not change."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import SimpleITK as sitk

from rrlsam.errors import listed
from rrlsam.geometry import geometry_of
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
    near: str
    """SHA-256 of the picture of its box; empty if it was looked at as a whole only."""
    scans: dict[str, StoredAffine]


def prepare_affines(
    atlas: str,
    target: Target,
    stored: Mapping[str, StoredCase],
    cases: Path,
    path: Path,
    *,
    workers: int | None,
    progress: Progress,
) -> dict[str, Alignment]:
    """Align every scan with the atlas (atlas world to scan world); alignments of unchanged scans are kept.

    `atlas`: its case, of which `target` has the pictures. What was aligned before an error or a stop is kept, too.
    """
    previous = load_or_none(StoredAffines, path, load_sealed)
    key = (SCHEMA, stored[atlas].payload, _digest(target.near))
    known = previous.scans if previous and (previous.schema, previous.atlas, previous.near) == key else {}
    found = {case: known[case] for case in stored if case in known and known[case].payload == stored[case].payload}
    missing = {case: case for case in stored if case not in found}
    if missing:

        def align_one(case: str) -> None:
            if case == atlas:
                alignment = unmoved(target.whole)
            else:
                loaded = load_case(cases, case)
                alignment = align_closely(target, loaded.array, loaded.geometry)
            found[case] = StoredAffine(payload=stored[case].payload, alignment=alignment)

        try:
            for_each(align_one, missing, "Alignment", workers=workers, progress=progress)
        finally:
            ordered = {case: found[case] for case in stored if case in found}
            save_sealed(StoredAffines(schema=key[0], atlas=key[1], near=key[2], scans=ordered), path)
        _report_fallbacks({case: found[case].alignment for case in missing})
    return {case: found[case].alignment for case in stored}


def _digest(picture: sitk.Image | None) -> str:
    """Of voxels and where they lie."""
    if picture is None:
        return ""
    return hashlib.sha256(repr(geometry_of(picture)).encode() + sitk.GetArrayFromImage(picture).tobytes()).hexdigest()


def _report_fallbacks(made: Mapping[str, Alignment]) -> None:
    shifted = sorted(case for case, alignment in made.items() if alignment.method == "centre")
    if shifted:
        _log.info("%d scan(s) were only shifted onto the atlas: %s", len(shifted), listed(shifted))
