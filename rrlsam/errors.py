"""The kinds of failure a user can meet; each knows the exit code of its command."""

from collections.abc import Sequence

SHOWN = 10
"""Of many problems, so many are named; the others are counted, or stand in a report."""


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first SHOWN names, and how many there are more."""
    return separator.join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class RrlsamError(Exception):
    """A failure with one sentence for the user: what, where, expected, what to do."""

    exit_code = 1


class UsageError(RrlsamError):
    """The command or a setting was used wrongly."""

    exit_code = 2


class BadInputError(RrlsamError):
    """A file of the user's (scan, label, dataset.json, plan, checkpoint) is not what it must be."""

    exit_code = 3


class ResourceError(RrlsamError):
    """The machine lacks something: disk, memory, a device, a permission, SAM's weights."""

    exit_code = 4


class GpuMemoryError(ResourceError):
    """What was to be computed does not fit on the GPU; elsewhere it may."""


class DeviceLostError(ResourceError):
    """The device has gone: nothing more can be computed on it by this process."""


class UnsafeError(RrlsamError):
    """Refused because going on could harm: a path that leaves its folder, a file that carries code."""

    exit_code = 5


class InternalError(RrlsamError):
    """A mistake of ours, met by one case of many."""


class PartialFailure(RrlsamError):
    """The command finished, but some cases failed."""

    exit_code = 6
