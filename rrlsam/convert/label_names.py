"""What label numbers of brain segmentations mean, and the structures that the paper evaluates."""

import re
from collections.abc import Mapping
from pathlib import Path

from rrlsam.errors import BadInputError

_SIDED = [
    "Cerebral-White-Matter",
    "Cerebral-Cortex",
    "Lateral-Ventricle",
    "Inf-Lat-Ventricle",
    "Cerebellum-White-Matter",
    "Cerebellum-Cortex",
    "Thalamus",
    "Caudate",
    "Putamen",
    "Pallidum",
]
_BEHIND = ["Hippocampus", "Amygdala", "Accumbens", "Ventral-DC", "Vessel", "Choroid-Plexus"]
_MIDDLE = ("3rd-Ventricle", "4th-Ventricle", "Brain-Stem")

SEG35: Mapping[int, str] = dict(
    enumerate(
        [
            *(f"Left-{name}" for name in _SIDED),
            *_MIDDLE,
            *(f"Left-{name}" for name in _BEHIND),
            *(f"Right-{name}" for name in (*_SIDED, *_BEHIND)),
        ],
        1,
    )
)
"""Neurite's numbering of OASIS, as in its seg35_labels.txt."""

SEG4: Mapping[int, str] = dict(enumerate(("Cortex", "Subcortical-Gray-Matter", "White-Matter", "CSF"), 1))
"""Neurite's tissues, as in its seg4_labels.txt."""

_ASEG_LEFT = dict(zip(_SIDED, (2, 3, 4, 5, 7, 8, 10, 11, 12, 13), strict=True))
_ASEG_LEFT |= dict(zip(_BEHIND, (17, 18, 26, 28, 30, 31), strict=True))
_ASEG_RIGHT = dict(zip(_SIDED, (41, 42, 43, 44, 46, 47, 49, 50, 51, 52), strict=True))
_ASEG_RIGHT |= dict(zip(_BEHIND, (53, 54, 58, 60, 62, 63), strict=True))
ASEG: Mapping[int, str] = dict(
    sorted(
        {
            **{number: f"Left-{name}" for name, number in _ASEG_LEFT.items()},
            **{number: f"Right-{name}" for name, number in _ASEG_RIGHT.items()},
            **dict(zip((14, 15, 16), _MIDDLE, strict=True)),
            **{24: "CSF", 72: "5th-Ventricle", 85: "Optic-Chiasm"},
            **{77: "WM-hypointensities", 78: "Left-WM-hypointensities", 79: "Right-WM-hypointensities"},
            **{80: "non-WM-hypointensities", 81: "Left-non-WM-hypointensities", 82: "Right-non-WM-hypointensities"},
            **dict(
                enumerate(("CC_Posterior", "CC_Mid_Posterior", "CC_Central", "CC_Mid_Anterior", "CC_Anterior"), 251)
            ),
        }.items()
    )
)
"""FreeSurfer's numbering, for what aseg.mgz holds, as in its FreeSurferColorLUT.txt."""

PAPER = (
    "Left-Cerebral-White-Matter",
    "Left-Cerebral-Cortex",
    "Left-Lateral-Ventricle",
    "Right-Cerebral-White-Matter",
    "Left-Thalamus",
    "Right-Cerebral-Cortex",
    "Right-Lateral-Ventricle",
    "WM-hypointensities",
    "Brain-Stem",
    "Left-Hippocampus",
    "Right-Thalamus",
    "Right-Hippocampus",
    "Left-Choroid-Plexus",
)
"""The 13 structures of OASIS in the authors' experiments, in their order; of the choroid plexus only the left one."""

_LINE = re.compile(r"\s*(\d+)\s+(\S+)(\s+\d+){3,4}\s*")


def read_color_table(path: Path) -> dict[int, str]:
    """Number to name from a colour table of FreeSurfer's ("17 Left-Hippocampus 220 216 20 0"), without 0."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); copy it again or remove it") from error
    names: dict[int, str] = {}
    for position, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) in names:
            raise BadInputError(f"{path}: line {position} is not NUMBER NAME R G B A with a new number; mend it")
        names[int(match[1])] = match[2]
    names.pop(0, None)
    if not names:
        raise BadInputError(f"{path}: lists no structure; copy it again or remove it")
    return names


def by_structure(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Structure to its numbers, in ascending order of the first."""
    found: dict[str, tuple[int, ...]] = {}
    for number, name in sorted(names.items()):
        found[name] = (*found.get(name, ()), number)
    return found


def paper_structures(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """The paper's structures as far as a numbering has them, by name; whatever the spelling of the name."""
    numbers: dict[str, tuple[int, ...]] = {}
    for number, name in sorted(names.items()):
        numbers[_key(name)] = (*numbers.get(_key(name), ()), number)
    return {name: numbers[_key(name)] for name in PAPER if _key(name) in numbers}


def _key(name: str) -> str:
    """A name without what differs between versions of FreeSurfer: case, "-Proper" and its asterisk."""
    return name.casefold().rstrip("*").removesuffix("-proper")
