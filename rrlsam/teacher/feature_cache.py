"""SAM's features of every case, computed once and kept on disk; reading them needs no SAM."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16
from torch import Tensor

from rrlsam.errors import BadInputError, ResourceError, RrlsamError
from rrlsam.geometry import Size3, Vector3
from rrlsam.nets.sam_weights import CHANNELS
from rrlsam.system.files import sha256
from rrlsam.system.jsonio import load_json, record, save_json
from rrlsam.system.progress import Progress, silent
from rrlsam.system.storage import read_array, write_array

_log = logging.getLogger(__name__)


@record
class FeatureKey:
    """All that a case's features depend on."""

    case: str
    content: str
    """Hash of the volume."""
    teacher_id: str
    """SHA-256 of the file of SAM's weights, or whatever tells another teacher from all others."""
    side_px: int
    grid: Size3
    """Axis order z, y, x."""
    spacing_mm: Vector3
    """Of the volume; slices are shown in square pixels."""
    axes: tuple[int, ...] = (0,)
    """Along which the teacher sees slices."""


@record
class FeatureEntry:
    """Written after the features themselves: a sidecar says that they are whole."""

    key: FeatureKey
    payload_sha256: str


@runtime_checkable
class Teacher(Protocol):
    """What the cache needs of a teacher."""

    def features(self, volume: Tensor, grid: Size3) -> Tensor:
        """Features (1, 256, z, y, x) of a volume (1, c, z, y, x), on a grid that spans the same box."""
        ...


def missing_features(keys: Sequence[FeatureKey], folder: Path) -> tuple[FeatureKey, ...]:
    """What is still to be computed."""
    return tuple(key for key in keys if load_features(key, folder) is None)


def disk_bytes(keys: Sequence[FeatureKey]) -> int:
    """What features take on disk at most: they are stored in half precision, and compressed."""
    return sum(CHANNELS * math.prod(key.grid) * np.dtype(np.float16).itemsize for key in keys)


def load_features(key: FeatureKey, folder: Path) -> Float16[np.ndarray, "c z y x"] | None:
    """The features if they are there, whole, and made from exactly this volume by this teacher."""
    array_file, sidecar = _files(key, folder)
    try:
        entry = load_json(FeatureEntry, sidecar)
        if entry.key != key or sha256(array_file) != entry.payload_sha256:
            return None
        features = read_array(array_file)
    except (RrlsamError, OSError):
        return None
    return features if features.dtype == np.float16 and features.shape[1:] == key.grid else None


def cached_features(
    key: FeatureKey, teacher: Teacher | None, volume_of: Callable[[str], Tensor], folder: Path
) -> Float16[np.ndarray, "c z y x"]:
    """Load a case's features, or compute and store them; volume_of(case) gives (1, c, z, y, x).

    Without a teacher, features that are not there raise ResourceError.
    """
    features = load_features(key, folder)
    if features is not None:
        return features
    if teacher is None:
        raise ResourceError(f"{folder}: SAM's features of {key.case} are not there; give --sam FILE to compute them")
    computed = _as_half(teacher.features(volume_of(key.case), key.grid), key.case)
    _store(key, computed, folder)
    return computed


def fill_cache(
    keys: Sequence[FeatureKey],
    teacher: Teacher,
    volume_of: Callable[[str], Tensor],
    folder: Path,
    progress: Progress = silent,
) -> int:
    """Compute and store what is missing; returns for how many cases. Interrupted, it goes on where it stopped."""
    missing = missing_features(keys, folder)
    if not missing:
        return 0
    started = time.monotonic()
    with progress("SAM features", len(missing)) as advance:
        for done, key in enumerate(missing, start=1):
            cached_features(key, teacher, volume_of, folder)
            advance()
            if done == 1 and len(missing) > 1:
                _log_estimate(time.monotonic() - started, len(missing))
    return len(missing)


def _files(key: FeatureKey, folder: Path) -> tuple[Path, Path]:
    axes = "".join("zyx"[axis] for axis in key.axes)
    parent = folder / f"{key.teacher_id[:12]}_{key.side_px}_{axes}"
    return parent / f"{key.case}.b2nd", parent / f"{key.case}.json"


def _store(key: FeatureKey, features: Float16[np.ndarray, "c z y x"], folder: Path) -> None:
    array_file, sidecar = _files(key, folder)
    write_array(features, array_file)
    save_json(FeatureEntry(key=key, payload_sha256=sha256(array_file)), sidecar)


def _as_half(features: Float[Tensor, "1 c z y x"], case: str) -> Float16[np.ndarray, "c z y x"]:
    half = features[0].detach().cpu().numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise BadInputError(f"{case}: SAM's features are not finite; check the scan and the file of SAM's weights")
    return np.ascontiguousarray(half)


def _log_estimate(seconds: float, cases: int) -> None:
    _log.info("SAM features: %.0f s a case, about %.0f min for %d cases", seconds, seconds * cases / 60, cases)
