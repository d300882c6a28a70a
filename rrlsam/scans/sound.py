"""Scans whose images were found sound are remembered by their content, so that they need not be read at each start.

Labels are read each time: nothing of them may be kept here.
"""

from pathlib import Path

from rrlsam.errors import BadInputError
from rrlsam.geometry import Geometry
from rrlsam.scans.dataset import Scan
from rrlsam.scans.scan_checks import Finding, check_images
from rrlsam.scans.volume import content_of
from rrlsam.system.jsonio import load_or_none, load_sealed, record, save_sealed

SCHEMA = 1
"""Raised whenever more is found about a scan than before: all are looked at again then."""


@record
class _SoundScan:
    files: tuple[str, ...]
    content: str
    """SHA-256 of the images."""
    grid: Geometry


@record
class _Stored:
    schema: int
    scans: dict[str, _SoundScan]
    """By case."""


class SoundScans:
    """A memory of sound scans in a file; `forget`: begin with none."""

    def __init__(self, path: Path, *, forget: bool = False) -> None:
        self._path = path
        before = None if forget else load_or_none(_Stored, path, load_sealed)
        self._before = before.scans if before is not None and before.schema == SCHEMA else {}
        self._now: dict[str, _SoundScan] = {}

    def check_images(self, scan: Scan) -> tuple[list[Finding], Geometry | None]:
        """As scan_checks.check_images; images that were sound before and have not changed are not read."""
        files = tuple(path.name for path in scan.images)
        try:
            content = content_of(*scan.images)
        except BadInputError:
            return check_images(scan)
        known = self._before.get(scan.case)
        if known is not None and (known.files, known.content) == (files, content):
            findings, grid = [], known.grid
        else:
            findings, grid = check_images(scan)
        if not findings and grid is not None:
            self._now[scan.case] = _SoundScan(files=files, content=content, grid=grid)
        return findings, grid

    def save(self) -> None:
        """Write what is known now, if that is something new; scans that a stop left unread stay known."""
        known = self._before | self._now
        if known != self._before:
            save_sealed(_Stored(schema=SCHEMA, scans=dict(sorted(known.items()))), self._path)
