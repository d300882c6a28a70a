"""What a converter finds: scans, their labels, and what the numbers in them mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk


@dataclass(frozen=True, kw_only=True)
class SourceCase:
    """One scan of the source."""

    name: str
    image: Path
    labels: tuple[Path, ...] = ()
    """Its label files; none: an unlabelled scan."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of somebody else's, understood."""

    format: str
    channel_name: str
    cases: tuple[SourceCase, ...]
    structures: Mapping[str, tuple[int, ...]]
    """Name to the source's numbers, in the order in which dataset.json is to list them."""
    known: frozenset[int]
    """Every number that may occur; those of no structure become background."""
    read_labels: Callable[[SourceCase], sitk.Image]
    """Label map of a labelled case in the source's numbers, int32; BadInputError says what is wrong."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Case to reason, for what was found and cannot be a case."""
