"""Which scans there are to work on, in a folder or beside a file, without any data set around them."""

from dataclasses import dataclass
from pathlib import Path

from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.scans.dataset import group_channels
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.scans.volume import ENDINGS, ending_of
from rrlsam.system.files import is_clutter, real


@dataclass(frozen=True, kw_only=True)
class InputScan:
    """A scan that was given: one that is predicted, registered, compared or learnt from."""

    case: str
    images: tuple[Path, ...]
    ending: str
    """What is written for it gets the same."""
    repairs: Repairs = NO_REPAIRS
    """What is mended when the files are read."""


def find_inputs(source: Path, n_channels: int, repairs: Repairs = NO_REPAIRS) -> tuple[InputScan, ...]:
    """Scans of a folder (files CASE_0000.ENDING, one a channel), or the scan that a single file belongs to.

    With all channels that there are, or the names of those that lack: a scan of other channels is refused by itself.
    """
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        files = [path for path in source.iterdir() if not is_clutter(path)]
    elif source.exists():
        if n_channels == 1:
            ending = ending_of(source)
            case = source.name.removesuffix(ending).removesuffix("_0000")
            return (InputScan(case=case, images=(source,), ending=ending, repairs=repairs),)
        files = _siblings(source)
    else:
        raise UsageError(f"{source}: no such file or folder")
    scans, strays = [], []
    for ending in ENDINGS:
        matching = [path for path in files if path.name.endswith(ending)]
        cases, other = group_channels(matching, ending)
        strays += other
        for case, channels in cases.items():
            count = max(n_channels, 1 + max(channels))
            images = tuple(channels.get(i, folder / f"{case}_{i:04d}{ending}") for i in range(count))
            scans.append(InputScan(case=case, images=images, ending=ending, repairs=repairs))
    if scans and not any(scan.images[0].exists() for scan in scans):
        raise BadInputError(
            f"{source}: no file is the first channel of a scan (CASE_0000); if the last four digits of "
            f"{scans[0].images[-1].name} are the scan's own, rename X to X_0000"
        )
    if strays:
        names = listed([path.name.replace("\n", "\\n") for path in strays])
        raise BadInputError(
            f"{source}: {len(strays)} file(s) lack a channel number ({names}); rename X to X_0000, or take out what is "
            "no scan"
        )
    if not scans:
        raise BadInputError(
            f"{source}: no scans found; files named CASE_0000 ending in {', '.join(ENDINGS)} are expected"
        )
    twice = {scan.case for scan in scans if sum(other.case == scan.case for other in scans) > 1}
    if twice:
        raise BadInputError(f"{source}: {listed(sorted(twice))} exist with several endings; keep one file of each")
    return tuple(sorted(scans, key=lambda scan: scan.case))


def count_channels(source: Path, other: Path | None = None) -> int:
    """How many channel files the scan of one file has; 1 for a file without channel number.

    1 too if `other`, which is to be another scan, is one of them: two kinds of one body, or two scans with numbers.
    """
    if not source.exists():
        return 1
    files = _siblings(source)
    others = {real(path) for path in files} - {real(source)}
    return 1 if other is not None and real(other) in others else len(files)


def _siblings(source: Path) -> list[Path]:
    """All channel files of the scan that one file belongs to."""
    ending = ending_of(source)
    cases, _ = group_channels([path for path in source.parent.iterdir() if not is_clutter(path)], ending)
    return next((list(files.values()) for files in cases.values() if source in files.values()), [source])
