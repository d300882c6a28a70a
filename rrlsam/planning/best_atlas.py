"""Which of several labelled scans is the atlas: the one that serves best, told by images alone and kept on disk."""

import hashlib
import logging
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from rrlsam.planning.fingerprint import Fingerprint, distances
from rrlsam.planning.trials import TRIED, find_services
from rrlsam.scans.dataset import Dataset
from rrlsam.system.jsonio import load_or_none, load_sealed, record, save_sealed, to_json
from rrlsam.system.progress import Progress

_log = logging.getLogger(__name__)
_SCHEMA = 1
"""Raised whenever scans would serve otherwise than before."""


@record
class Services:
    """What scans are worth as atlas, as `planning.trials` finds it."""

    schema: int
    contents: dict[str, str]
    """Case to SHA-256 of its images."""
    service: dict[str, float | None]
    """None: it cannot be registered."""


def best_atlas(
    dataset: Dataset,
    fingerprint: Fingerprint,
    candidates: Sequence[str],
    among: Sequence[str],
    folder: Path,
    progress: Progress,
) -> str:
    """The candidate that serves best where it and others of the scans `among` are registered with each other.

    TRIED scans at most are: the candidates most like the scans `among`, then other such scans. Ties, and candidates of
    which none can be registered, go by that likeness. What was found stands in `folder` and is used again while the
    images stay the same.
    """
    order = _most_alike(fingerprint, candidates, among)
    tried = sorted(order)
    content = {scan.case: scan.content for scan in fingerprint.scans}
    contents = {case: content[case] for case in tried}
    path = folder / f"services_{hashlib.sha256(to_json(tried).encode()).hexdigest()[:8]}.json"
    known = load_or_none(Services, path, load_sealed)
    if known is None or (known.schema, known.contents) != (_SCHEMA, contents):
        found = find_services([dataset.scan(case) for case in tried], progress)
        service = {case: None if isnan(value) else value for case, value in zip(tried, found.tolist(), strict=True)}
        known = Services(schema=_SCHEMA, contents=contents, service=service)
        save_sealed(known, path)
    worth = {case: value for case in order if case in candidates and (value := known.service[case]) is not None}
    if not worth:
        _log.warning("%s: is the atlas, since no scan with a label can be registered", order[0])
    return max(worth, key=worth.__getitem__, default=order[0])


def _most_alike(fingerprint: Fingerprint, candidates: Sequence[str], among: Sequence[str]) -> list[str]:
    """TRIED scans, candidates first, those first that are most like all scans `among`."""
    row = {scan.case: index for index, scan in enumerate(fingerprint.scans)}
    far = distances(fingerprint)[:, [row[case] for case in among]].sum(1)
    return sorted({*candidates, *among}, key=lambda case: (case not in candidates, far[row[case]], case))[:TRIED]
