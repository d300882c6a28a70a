"""What this machine has and lacks for rrlsam. Imports nothing heavy, so that it can tell what is broken."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rrlsam import __version__
from rrlsam.system.resources import existing_folder, free_disk, usable_cores, usable_memory
from rrlsam.teacher.sam_releases import RELEASES, cache_folder, problem_of
from rrlsam.workspace import Workspace

OK, WARNING, WRONG = "ok", "warning", "wrong"
OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 3 << 30, 1 << 30
LITTLE_DISK, TOO_LITTLE_DISK = 5 << 30, 256 << 20
PACKAGES = {
    "torch": "torch",
    "SimpleITK": "SimpleITK",
    "nibabel": "nibabel",
    "numpy": "numpy",
    "scipy": "scipy",
    "blosc2": "blosc2",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "batchgenerators": "batchgenerators",
    "acvl-utils": "acvl_utils",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "jaxtyping": "jaxtyping",
}
"""Distribution name to module name."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: str
    """ok, warning (goes, but) or wrong (cannot work)."""
    found: str
    remedy: str = ""
    """How to mend it; empty if nothing is to be mended."""


def examine(workspace: Workspace, environment: Mapping[str, str], home: Path) -> Iterator[Check]:
    """Every check, one after the other; a check that breaks down is reported as wrong and does not stop the others."""
    checks: dict[str, Callable[[], Check]] = {"rrlsam": _own_version, "python": _python}
    checks |= {package: _package_check(package, module) for package, module in PACKAGES.items()}
    checks |= {"segment-anything": _segment_anything, "devices": _devices, "cores": _cores, "memory": _memory}
    checks |= {f"{which} folder": _folder_check(workspace, which) for which in ("raw", "preprocessed", "results")}
    checks |= {"SAM weights": lambda: _sam_weights(cache_folder(environment, home)), "shared memory": _shared_memory}
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever is broken here is what the doctor is asked about
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Check(name=name, status=WRONG, found=f"cannot be examined ({reason})", remedy="mend that first")


def _own_version() -> Check:
    return Check(name="rrlsam", status=OK, found=__version__)


def _python() -> Check:
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Check(name="python", status=WRONG, found=found, remedy="install Python 3.11 or newer")
    if platform.system() != "Linux":
        return Check(name="python", status=WARNING, found=found, remedy="rrlsam is tested on Linux only")
    return Check(name="python", status=OK, found=found)


def _package_check(package: str, module: str) -> Callable[[], Check]:
    return lambda: _package(package, module)


def _package(package: str, module: str) -> Check:
    """Whether a package is installed and really can be imported."""
    remedy = f"pip install --force-reinstall {package}"
    try:
        found = version(package)
    except PackageNotFoundError:
        return Check(name=package, status=WRONG, found="not installed", remedy=f"pip install {package}")
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation raises nearly anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        return Check(name=package, status=WRONG, found=f"{found} cannot be imported ({reason})", remedy=remedy)
    return Check(name=package, status=OK, found=found)


def _segment_anything() -> Check:
    """Only training with distillation needs it; without torchvision it cannot be imported in the plain way."""
    try:
        return Check(name="segment-anything", status=OK, found=version("segment-anything"))
    except PackageNotFoundError:
        remedy = "pip install segment-anything, or train with --sam none"
        return Check(name="segment-anything", status=WARNING, found="not installed", remedy=remedy)


def _devices() -> Check:
    import torch

    found = [
        f"cuda {torch.cuda.get_device_name(i)}, {_gigabytes(torch.cuda.get_device_properties(i).total_memory)}"
        for i in range(torch.cuda.device_count())
    ]
    if found:
        return Check(name="devices", status=OK, found="; ".join(found))
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        remedy = "install the CUDA build of PyTorch (pytorch.org) to use it"
        return Check(
            name="devices", status=WARNING, found="an NVIDIA driver, but PyTorch is built for CPU", remedy=remedy
        )
    return Check(name="devices", status=OK, found="cpu; no GPU was found, none is needed")


def _cores() -> Check:
    return Check(name="cores", status=OK, found=f"{usable_cores()} usable of {os.cpu_count()}")


def _memory() -> Check:
    memory = usable_memory()
    found = f"{_gigabytes(memory.total)} usable, {_gigabytes(memory.free)} of it free"
    if memory.free < TOO_LITTLE_MEMORY:
        return Check(
            name="memory", status=WRONG, found=found, remedy=f"free some; {_gigabytes(TOO_LITTLE_MEMORY)} at least"
        )
    if memory.free < LITTLE_MEMORY:
        return Check(
            name="memory", status=WARNING, found=found, remedy="close other programs, or plan with -pl low_memory"
        )
    return Check(name="memory", status=OK, found=found)


def _folder_check(workspace: Workspace, which: str) -> Callable[[], Check]:
    return lambda: _folder(workspace.roots[which], which)


def _folder(path: Path | None, which: str) -> Check:
    name = f"{which} folder"
    if path is None:
        remedy = f"set rrlsam_{which}, or give --{which} to the commands"
        return Check(name=name, status=WARNING, found="not set", remedy=remedy)
    there = existing_folder(path)
    if not there.is_dir():
        return Check(name=name, status=WRONG, found=f"{path}: {there} is a file", remedy="name a folder")
    free = free_disk(path)
    found = f"{path}, {_gigabytes(free)} free" + ("" if path.exists() else ", not there yet")
    if which == "raw":
        return _raw_folder(path, found)
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(
            name=name, status=WRONG, found=f"{found}, not writable", remedy=f"chmod u+w {there}, or name another"
        )
    if free < TOO_LITTLE_DISK:
        return Check(name=name, status=WRONG, found=found, remedy="free some disk, or name another folder")
    if free < LITTLE_DISK:
        return Check(name=name, status=WARNING, found=found, remedy="a large data set may need more; free some disk")
    return Check(name=name, status=OK, found=found)


def _raw_folder(path: Path, found: str) -> Check:
    """It is only read; without it nothing can be planned."""
    name = "raw folder"
    if not path.is_dir():
        return Check(name=name, status=WRONG, found=found, remedy="make it and put a DatasetNNN_Name into it")
    if not os.access(path, os.R_OK | os.X_OK):
        return Check(name=name, status=WRONG, found=f"{found}, not readable", remedy=f"chmod u+rx {path}")
    datasets = sum(folder.name.startswith("Dataset") and folder.is_dir() for folder in path.iterdir())
    return Check(name=name, status=OK, found=f"{found}, {datasets} data sets")


def _sam_weights(folder: Path) -> Check:
    name, there = "SAM weights", [release for release in RELEASES.values() if (folder / release.file).is_file()]
    if not there:
        remedy = "run rrlsam_download_sam, or train with --sam none"
        return Check(name=name, status=WARNING, found=f"none in {folder}", remedy=remedy)
    for release in there:
        if problem := problem_of(folder / release.file, release):
            remedy = f"delete it and run rrlsam_download_sam {release.name}"
            return Check(name=name, status=WRONG, found=f"{folder / release.file}: {problem}", remedy=remedy)
    found = ", ".join(release.file for release in there)
    return Check(name=name, status=OK, found=f"{folder}: {found}, SHA-256 as published")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    size = _gigabytes(shutil.disk_usage(folder).total) if folder.is_dir() else "none"
    return Check(name="shared memory", status=OK, found=f"{size}; none is needed, rrlsam works in threads")


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
