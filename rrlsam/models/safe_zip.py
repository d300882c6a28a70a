"""Zip archives of strangers: everything that could harm is refused before a byte is unpacked."""

import hashlib
import itertools
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import BadInputError, UnsafeError

MAX_MEMBERS = 1000
MAX_RATIO = 100
"""Bytes that a byte of the archive may become."""
MAX_TOTAL_BYTES = 16 << 30
FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member that we write: the same content gives the same bytes."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, kw_only=True)
class SafeZip:
    """An archive whose directory was looked through; members are read into memory, never extracted by their names."""

    path: Path
    sizes: Mapping[str, int]
    """Unpacked size of every member, bytes."""

    def read(self, name: str, *, digest: str | None = None) -> bytes:
        """A member's content; UnsafeError if it is longer than it claims, damaged, or has not that SHA-256."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as stream:
                content = stream.read(self.sizes[name] + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
            raise UnsafeError(f"{self.path}: {name}: corrupt or changed ({error}); get the file again") from error
        if len(content) != self.sizes[name]:
            raise UnsafeError(f"{self.path}: {name}: has another size than the archive says; get the file again")
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            raise UnsafeError(f"{self.path}: {name}: corrupt or changed, its SHA-256 differs from the manifest's")
        return content


def check_zip(path: Path, allowed: re.Pattern[str], max_sizes: Mapping[str, int]) -> SafeZip:
    """Look through an archive's directory without unpacking anything.

    `allowed`: what a member may be called, as a full match; `max_sizes`: bytes by file name ending. UnsafeError for
    whatever is not plainly harmless, BadInputError for what is no readable zip archive.
    """
    if not path.is_file():
        raise BadInputError(f"{path}: no such file, or not a regular one")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise BadInputError(f"{path}: not a readable zip archive ({error}); get the file again") from error
    problem = _problem_of_all(members) or next(filter(None, (_problem(m, allowed, max_sizes) for m in members)), None)
    if problem:
        raise UnsafeError(f"{path}: {problem}; refused, nothing was unpacked")
    return SafeZip(path=path, sizes={member.filename: member.file_size for member in members})


def _problem_of_all(members: list[zipfile.ZipInfo]) -> str | None:
    if len(members) > MAX_MEMBERS:
        return f"{len(members):,} members, at most {MAX_MEMBERS:,} are allowed"
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        return f"the member {next(n for n in names if names.count(n) > 1)!r} is there more than once"
    total = sum(member.file_size for member in members)
    if total > MAX_TOTAL_BYTES:
        return f"unpacks to {total:,} bytes, at most {MAX_TOTAL_BYTES:,} are allowed"
    ordered = sorted(members, key=lambda member: member.header_offset)
    for first, second in itertools.pairwise(ordered):
        if first.header_offset + first.compress_size > second.header_offset:
            return f"the members {first.filename!r} and {second.filename!r} overlap"
    return None


def _problem(member: zipfile.ZipInfo, allowed: re.Pattern[str], max_sizes: Mapping[str, int]) -> str | None:
    name = member.orig_filename
    if name != member.filename or not allowed.fullmatch(name):
        return f"a member is called {name[:100]!r}, which no model file holds"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return f"the member {name!r} is a link or a device"
    if member.flag_bits & 1 or member.compress_type not in _COMPRESSIONS:
        return f"the member {name!r} is encrypted or packed in an unusual way"
    if member.file_size > MAX_RATIO * max(member.compress_size, 1):
        return f"the member {name!r} would grow more than {MAX_RATIO}-fold"
    limit = max_sizes[Path(name).suffix]
    if member.file_size > limit:
        return f"the member {name!r} has {member.file_size:,} bytes, at most {limit:,} are allowed"
    return None
