"""Arrays on disk: compressed with blosc2, written whole or not at all."""

import hashlib
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.system.files import atomic_write

_COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}


def write_array(array: np.ndarray, path: Path) -> None:
    """Write any array to a .b2nd file."""
    with atomic_write(path) as temporary:
        try:
            source: Any = np.ascontiguousarray(array)  # blosc2's own annotation leaves out numpy's arrays
            blosc2.asarray(source, urlpath=str(temporary), cparams=_COMPRESSION)
        except RuntimeError as error:
            raise ResourceError(f"{path}: could not be written whole; is the disk full?") from error


def read_array(path: Path) -> np.ndarray:
    """Read a .b2nd file; BadInputError if it is missing, no regular file or does not unpack."""
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: is not a regular file; delete it")
    try:
        stored: Any = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        return stored[:]
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise BadInputError(f"{path}: corrupt, cannot be unpacked") from error


def array_sha256(array: np.ndarray) -> str:
    """Hexadecimal SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
