"""The official files of SAM's weights: what they must be, where they are kept, which one a training uses."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.settings import SAM_MODELS
from rrlsam.system.files import sha256
from rrlsam.system.progress import Progress, silent

_BASE = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True, kw_only=True)
class SamRelease:
    """One official file of weights."""

    name: str
    """As commands call it."""
    file: str
    url: str
    sha256: str
    size: int | None
    """Bytes, or None where only the sum is known for sure."""


@dataclass(frozen=True, kw_only=True)
class TeacherFile:
    """A file of weights with its content's hash."""

    path: Path
    sha256: str


def _release(name: str, file: str, sha: str, size: int | None) -> SamRelease:
    return SamRelease(name=name, file=file, url=_BASE + file, sha256=sha, size=size)


RELEASES: dict[str, SamRelease] = {
    release.name: release
    for release in (
        _release(
            SAM_MODELS[0],
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
        ),
        _release(
            SAM_MODELS[1],
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            None,
        ),
        _release(
            SAM_MODELS[2],
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
        ),
    )
}
"""By name; the first is the default teacher."""


def cache_folder(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> Path:
    """The folder that `rrlsam_cache` names, else `rrlsam` in XDG_CACHE_HOME, else in ~/.cache."""
    named, caches = environment.get("rrlsam_cache"), environment.get("XDG_CACHE_HOME", "")
    if named:
        return Path(named)
    return (Path(caches) if os.path.isabs(caches) else (home or Path.home()) / ".cache") / "rrlsam"


def by_hand(release: SamRelease) -> str:
    """How to install a release where there is no network."""
    return (
        f"get {release.url} (SHA-256 {release.sha256}) in another way, "
        f"then run: rrlsam_download_sam {release.name} --from FILE"
    )


def problem_of(path: Path, release: SamRelease) -> str | None:
    """What keeps a file from being the release, byte for byte; ResourceError if it can't be read."""
    try:
        size = path.stat().st_size
        if release.size is not None and size != release.size:
            return f"has {size} bytes, the official file has {release.size}"
        found = sha256(path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read ({error.strerror or error}); {by_hand(release)}") from error
    return None if found == release.sha256 else f"has the SHA-256 {found}, the official file has {release.sha256}"


def require_sam(choice: str | None, folder: Path | None = None, progress: Progress = silent) -> TeacherFile | None:
    """The weights that `--sam` means: a file, a release by name, or (None) SAM-Base; None for "none".

    A release is downloaded when it is used for the first time. Raises ResourceError if there are no weights.
    """
    if choice == "none":
        return None
    if choice is not None and choice not in RELEASES:
        return _own_file(Path(choice))
    release = RELEASES[choice or SAM_MODELS[0]]
    path = (folder or cache_folder()) / release.file
    if path.exists():
        if problem := problem_of(path, release):
            raise BadInputError(f"{path}: {problem}; delete it to have it downloaded, or {by_hand(release)}")
        return TeacherFile(path=path, sha256=release.sha256)
    from rrlsam.teacher.sam_download import download

    try:
        download(release, path.parent, progress)
    except ResourceError as error:
        raise ResourceError(f"{error}; or give --sam FILE, or --sam none to train without SAM") from error
    return TeacherFile(path=path, sha256=release.sha256)


def _own_file(path: Path) -> TeacherFile:
    if not path.is_file():
        problem = "is no file" if path.exists() else "no such file"
        raise ResourceError(f"{path}: {problem}; --sam needs {', '.join(RELEASES)}, a file of SAM's weights or none")
    try:
        return TeacherFile(path=path, sha256=sha256(path))
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read ({error.strerror or error}); give another file") from error
