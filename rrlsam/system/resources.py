"""What this machine really grants: cores and memory, control groups respected, and disk."""

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import ResourceError


def usable_cores(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: affinity mask and the tightest control group's quota, at least 1."""
    cores = len(os.sched_getaffinity(0))
    for folder in _control_groups(proc, groups, "cpu"):
        quota = _first_line(folder / "cpu.max").split() or [
            _first_line(folder / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")
        ]
        if all(part.isdigit() for part in quota):  # else max or -1: no limit
            cores = min(cores, int(quota[0]) // int(quota[1]))
    return max(1, cores)


def existing_folder(path: Path) -> Path:
    """A path, or the nearest one above it that exists: where its disk is."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def free_disk(path: Path) -> int:
    """Bytes free on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(existing_folder(path)).free


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory that this process may use, bytes."""

    total: int
    free: int
    """What can still be taken, caches that would be given up included."""


def usable_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """The machine's memory, or what the tightest limit (control groups, ulimit -v) leaves this process of it."""
    fields = dict(line.split(":", 1) for line in _lines(proc / "meminfo") if ":" in line)
    total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for folder in _control_groups(proc, groups, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
        if limit is not None and limit < total:
            caches = [
                int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith("inactive_file ")
            ]
            total, free = limit, min(free, max(0, limit - used + sum(caches)))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        total, free = min(total, limit), min(free, max(0, limit - _address_space(proc)))
    return Memory(total=total, free=free)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """ResourceError if so many bytes are not free, before the system ends the process for taking them."""
    free = usable_memory().free
    if needed > free:
        raise ResourceError(f"{what}: needs {needed / 1e6:,.0f} MB of memory, {free / 1e6:,.0f} MB are free; {remedy}")


def workers_within_memory(workers: int | None, bytes_each: int) -> int:
    """As many workers as were asked for (None: one a usable core), or those for which memory suffices, at least 1."""
    wanted = workers or usable_cores()
    return max(1, min(wanted, usable_memory().free // max(bytes_each, 1)))


def _address_space(proc: Path) -> int:
    """Bytes of address space that this process has taken."""
    pages = _first_line(proc / "self" / "statm").split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _control_groups(proc: Path, groups: Path, controller: str) -> list[Path]:
    """The control groups around this process, outermost first: version 2, and those of a controller of version 1."""
    found = [groups, groups / controller]
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        root = groups if not controllers else groups / controller if controller in controllers.split(",") else None
        if root is not None:
            inner = root / path.lstrip("/")
            found += [folder for folder in reversed([inner, *inner.parents]) if root in folder.parents]
    return found


def _number(folder: Path, *names: str) -> int | None:
    texts = (_first_line(folder / name).strip() for name in names)
    return next((int(text) for text in texts if text.isdigit()), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")
