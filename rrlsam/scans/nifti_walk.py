"""NIfTI files looked through byte by byte, since image readers take a cut file for a whole one and NaN for 0."""

import gzip
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from rrlsam.errors import BadInputError

MAX_VOXELS = 2**33
_MAX_OFFSET = 2**30
MOST_PACKED = 1100
"""gzip makes nothing smaller than by a factor of 1032."""
_CHUNK = 1 << 22
_NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
"""How such a file begins, in either order of bytes."""
_FORMS = {
    "sform": ("srow_x", "srow_y", "srow_z"),
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
}
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


def walk_nifti(path: Path, require_memory: Callable[[int], None]) -> int:
    """Check that a NIfTI file holds all bytes that its header promises; returns how many voxels are not finite.

    `require_memory` is asked, before anything is unpacked, about as many voxels as the file may really hold.
    """
    packed = _is_packed(path)
    claims, size = _claims(path, *_headers(path)), path.stat().st_size
    if packed != path.name.endswith(".gz"):
        _require_right_name(path, packed)
    if packed and claims.bytes > MOST_PACKED * size:
        raise BadInputError(
            f"{path}: the header claims {claims.bytes:,} bytes of voxels, more than it can hold; copy it again"
        )
    if packed or claims.bytes <= size:
        require_memory(claims.voxels)
    return _walk(path, claims)


def stored_voxels(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file as they are stored and scaled, last axis first; NaN stays NaN."""
    from nibabel.fileholders import FileHolder
    from nibabel.nifti1 import Nifti1Image

    with _opened(path) as stream:
        image: Any = Nifti1Image.from_file_map({"image": FileHolder(fileobj=stream)})
        return np.asanyarray(image.dataobj).T


def read_nifti_header(path: Path) -> Any:
    """A header as nibabel mends it, without extensions."""
    return _headers(path)[0]


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if _is_packed(path) else path.open("rb")


def _require_right_name(path: Path, packed: bool) -> None:
    """BadInputError where readers would not unpack a file; a plain one is read whatever it is called."""
    if packed:
        raise BadInputError(f"{path}: is compressed, which its name does not say; rename it to {path.name}.gz")
    _log.warning("%s: is not compressed, though its name says so", path)


def _headers(path: Path) -> tuple[Any, Any]:
    """A header as nibabel mends it, and as it is stored: mending forgets spacings and the offset without a word."""
    from nibabel.nifti1 import Nifti1Header

    try:
        with _opened(path) as stream:
            content = stream.read(Nifti1Header.template_dtype.itemsize)
        if not content.startswith(_NIFTI_2):
            return Nifti1Header(content), Nifti1Header(content, check=False)
    except Exception as error:  # nibabel raises many kinds for a broken header
        raise BadInputError(
            f"{path}: corrupt or not a NIfTI file ({str(error)[:160]}); copy or convert it again"
        ) from error
    raise BadInputError(f"{path}: is a NIfTI-2 file; save it as NIfTI-1")


def _claims(path: Path, header: Any, stored: Any) -> _Claims:
    """What the header says; BadInputError for what cannot be."""
    shape = tuple(int(n) for n in header.get_data_shape())
    voxels = int(np.prod(shape, dtype=object))
    if not 0 < voxels <= MAX_VOXELS or min(shape) < 1:
        raise BadInputError(f"{path}: the header claims an impossible size {shape}; copy or convert it again")
    spacing = stored["pixdim"][1:4].tolist()
    if any(z <= 0 or not np.isfinite(z) for z in spacing):
        raise BadInputError(f"{path}: voxel spacing {spacing} must be positive; mend pixdim in the header")
    if not 0 <= (offset := float(stored["vox_offset"])) <= _MAX_OFFSET:
        raise BadInputError(f"{path}: corrupt, the header claims that voxels begin at byte {offset:g}; copy it again")
    _require_place(path, stored)
    return _Claims(voxels=voxels, dtype=header.get_data_dtype(), offset=int(offset))


def _require_place(path: Path, stored: Any) -> None:
    """BadInputError for a place that is no number, with which SimpleITK goes on."""
    for form, names in _FORMS.items():
        if stored[f"{form}_code"] > 0 and not all(np.isfinite(stored[name]).all() for name in names):
            raise BadInputError(f"{path}: its {form} holds NaN or infinite numbers; mend the header")


def _walk(path: Path, claims: _Claims) -> int:
    """Read all voxels, and to the end of the compressed data, where its checksum is; counts those not finite."""
    found = nonfinite = 0
    try:
        with _opened(path) as stream:
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
