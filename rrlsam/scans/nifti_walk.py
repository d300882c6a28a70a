"""NIfTI files looked through byte by byte, since image readers take a cut file for a whole one and NaN for 0."""

import gzip
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rrlsam.errors import BadInputError

MAX_VOXELS = 2**33
_MAX_OFFSET = 2**30
_MOST_PACKED = 1100
"""gzip makes nothing smaller than by a factor of 1032."""
_CHUNK = 1 << 22
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Claims:
    """What a header says of the file."""

    voxels: int
    dtype: np.dtype[Any]
    offset: int
    """Where voxels begin, in bytes."""

    @property
    def bytes(self) -> int:
        return self.voxels * self.dtype.itemsize


def walk_nifti(path: Path, require_memory: Callable[[int], None], reason: Callable[[str], str]) -> int:
    """Check that a NIfTI file holds all bytes that its header promises; returns how many voxels are not finite.

    `require_memory` is asked, before anything is unpacked, about as many voxels as the file may really hold; `reason`
    picks what is telling in a library's message.
    """
    packed = _is_packed(path)
    header = _header(path, packed, reason)
    claims, size = _claims(path, header, packed), path.stat().st_size
    if packed and claims.bytes > _MOST_PACKED * size:
        raise BadInputError(
            f"{path}: the header claims {claims.bytes:,} bytes of voxels, more than it can hold; copy it again"
        )
    if packed or claims.bytes <= size:
        require_memory(claims.voxels)
    return _walk(path, claims, packed)


def stored_voxels(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file as they are stored and scaled, last axis first; NaN stays NaN."""
    import nibabel

    image: Any = (nibabel.load if _is_packed(path) else nibabel.Nifti1Image.from_filename)(path)
    return np.asanyarray(image.dataobj).T


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _header(path: Path, packed: bool, reason: Callable[[str], str]) -> Any:
    import nibabel

    try:
        return nibabel.load(path).header if packed else nibabel.Nifti1Image.from_filename(path).header
    except Exception as error:  # nibabel raises many kinds for a broken header
        raise BadInputError(f"{path}: corrupt or not a NIfTI file ({reason(str(error))})") from error


def _claims(path: Path, header: Any, packed: bool) -> _Claims:
    """What the header says; BadInputError for what cannot be."""
    shape = tuple(int(n) for n in header.get_data_shape())
    voxels = int(np.prod(shape, dtype=object))
    if not 0 < voxels <= MAX_VOXELS or min(shape) < 1:
        raise BadInputError(f"{path}: the header claims an impossible size {shape}")
    with (gzip.open if packed else open)(path, "rb") as stream:
        # as stored: loading mends spacings and forgets the offset without a word
        stored = type(header).from_fileobj(stream, check=False)
    spacing = stored["pixdim"][1:4].tolist()
    if any(z <= 0 or not np.isfinite(z) for z in spacing):
        raise BadInputError(f"{path}: voxel spacing {spacing} must be positive; mend pixdim in the header")
    if not 0 <= (offset := float(stored["vox_offset"])) <= _MAX_OFFSET:
        raise BadInputError(f"{path}: corrupt, the header claims that voxels begin at byte {offset:g}; copy it again")
    return _Claims(voxels=voxels, dtype=header.get_data_dtype(), offset=int(offset))


def _walk(path: Path, claims: _Claims, packed: bool) -> int:
    """Read all voxels, and to the end of the compressed data, where its checksum is; counts those not finite."""
    found = nonfinite = 0
    try:
        with (gzip.open if packed else open)(path, "rb") as stream:
            stream.seek(claims.offset)
            while block := stream.read(min(_CHUNK, claims.bytes - found) if found < claims.bytes else _CHUNK):
                if found < claims.bytes:
                    nonfinite += _nonfinite(block, claims.dtype)
                found += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if found == claims.bytes and str(error).startswith("Not a gzipped file"):
            _log.warning("%s: what lies behind the compressed data is left out", path)
            return nonfinite
        raise BadInputError(
            f"{path}: corrupt or cut short, {found:,} of {claims.bytes:,} bytes of voxels could be read; copy it again"
        ) from error
    if found < claims.bytes:
        raise BadInputError(f"{path}: cut short, {found:,} of {claims.bytes:,} bytes of voxels; copy it again")
    return nonfinite


def _nonfinite(block: bytes, dtype: np.dtype[Any]) -> int:
    if dtype.kind != "f":
        return 0
    usable = block[: len(block) - len(block) % dtype.itemsize]
    return int(np.count_nonzero(~np.isfinite(np.frombuffer(usable, dtype=dtype))))
