"""A data set in nnU-Net's raw layout, read only: labelled and unlabelled scans, channels, labels."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rrlsam.errors import BadInputError, UnsafeError, UsageError, listed
from rrlsam.labels import LabelScheme, parse_labels
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.scans.volume import ENDINGS
from rrlsam.system.files import is_clutter, spelt
from rrlsam.system.jsonio import read_whole

T = TypeVar("T")
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


HIGHEST_NUMBER = 999
"""Of a data set."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan: a file a channel, and the label file if it has one."""

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    repairs: Repairs = NO_REPAIRS
    """What is mended when its files are read."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What dataset.json and its folders say."""

    name: str
    """Folder name such as Dataset004_Hippocampus."""
    folder: Path
    channel_names: tuple[str, ...]
    labels: LabelScheme
    file_ending: str
    num_training: int
    scans: tuple[Scan, ...]
    """Sorted by case name."""
    strays: tuple[Path, ...]
    """Files in the image folders that belong to no scan."""

    @property
    def labelled(self) -> tuple[str, ...]:
        """Names of the labelled cases, sorted."""
        return tuple(scan.case for scan in self.scans if scan.label is not None)

    def with_repairs(self, repairs: Repairs) -> "Dataset":
        """The same scans, mended as they are read."""
        return replace(self, scans=tuple(replace(scan, repairs=repairs) for scan in self.scans))

    def label_of(self, case: str) -> Path:
        """The label file of a case; UsageError if it has none."""
        label = self.scan(case).label
        if label is None:
            raise UsageError(f"--atlas {case}: the case has no label")
        return label

    def scan(self, case: str) -> Scan:
        """The scan of a case name."""
        for scan in self.scans:
            if scan.case == case:
                return scan
        raise UsageError(f"{self.name}: no case named {case!r}; there are {listed([s.case for s in self.scans])}")


def is_number(text: str) -> bool:
    """Whether a text is a number that a fold or a data set may have."""
    return text.isascii() and text.isdigit() and len(text) < 10


def numbered(number: int) -> str:
    """What the name of a data set of that number begins with."""
    return f"Dataset{number:03d}_"


def find_dataset(raw: Path, id_or_name: str) -> Path:
    """The folder of a data set given by number ("4") or by name; UsageError or BadInputError if not exactly one."""
    if not raw.is_dir():
        raise UsageError(f"{raw}: the folder of raw data sets does not exist; give --raw or set rrlsam_raw")
    folders = sorted(p for p in raw.iterdir() if p.is_dir() and p.name.startswith("Dataset"))
    if is_number(id_or_name):
        found = [p for p in folders if p.name.startswith(numbered(int(id_or_name)))]
    else:
        found = [p for p in folders if p.name == id_or_name]
    if len(found) > 1:
        raise BadInputError(f"{raw}: {listed([p.name for p in found])} share one number; rename all but one")
    if not found:
        there = listed([p.name for p in folders]) or "none"
        raise UsageError(f"{raw}: no data set {id_or_name!r}; there are: {there}")
    return found[0]


def load_dataset(folder: Path) -> Dataset:
    """Read dataset.json and list the scans; no image is opened."""
    path = folder / "dataset.json"
    if not path.exists():
        raise BadInputError(f"{path}: no such file; every data set needs one")
    try:
        content = json.loads(read_whole(path))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate is no text that can be written
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: must hold a JSON object")
    channels = _required(content, "channel_names" if "channel_names" in content else "modality", dict, path)
    labels = _required(content, "labels", dict, path)
    ending = _required(content, "file_ending", str, path)
    if not channels or set(channels) != {str(i) for i in range(len(channels))}:
        raise BadInputError(f'{path}: channel_names must be numbered "0", "1", ...; found {list(channels)}')
    if ending not in ENDINGS:
        raise BadInputError(f"{path}: file_ending {ending!r} must be one of {', '.join(ENDINGS)}")
    if "dataset" in content:
        scans, strays = _listed_scans(folder, path, content["dataset"]), []
    else:
        scans, strays = _found_scans(folder, ending, len(channels))
    return Dataset(
        name=folder.name,
        folder=folder,
        channel_names=tuple(str(channels[str(i)]) for i in range(len(channels))),
        labels=parse_labels(labels, content.get("regions_class_order"), source=str(path)),
        file_ending=ending,
        num_training=_required(content, "numTraining", int, path),
        scans=tuple(sorted(scans, key=lambda scan: scan.case)),
        strays=tuple(strays),
    )


def _required(content: dict[str, object], key: str, kind: type[T], path: Path) -> T:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadInputError(f"{path}: {key} is missing or of the wrong kind; see nnU-Net's dataset format")
    return value


def describe_dataset(channel_names: Sequence[str], labels: LabelScheme, file_ending: str, num_training: int) -> str:
    """The text of a dataset.json."""
    values: dict[str, int | list[int]] = {"background": 0}
    for structure in labels.structures:
        values[structure.name] = structure.values[0] if len(structure.values) == 1 else list(structure.values)
    if labels.ignore is not None:
        values["ignore"] = labels.ignore
    content: dict[str, object] = {
        "channel_names": {str(i): name for i, name in enumerate(channel_names)},
        "labels": values,
        "numTraining": num_training,
        "file_ending": file_ending,
    }
    if labels.regions_class_order is not None:
        content["regions_class_order"] = list(labels.regions_class_order)
    return json.dumps(content, indent=2) + "\n"


def group_channels(files: list[Path], file_ending: str) -> tuple[dict[str, dict[int, Path]], list[Path]]:
    """Sort files named CASE_CCCC.ENDING by case and channel; second, the files that are not named so."""
    cases: dict[str, dict[int, Path]] = {}
    strays = []
    for path in sorted(files):
        match = _CHANNEL.match(path.name.removesuffix(file_ending)) if path.name.endswith(file_ending) else None
        if match is None:
            strays.append(path)
        else:
            cases.setdefault(spelt(match["case"]), {})[int(match["channel"])] = path
    return cases, strays


def _found_scans(folder: Path, ending: str, n_channels: int) -> tuple[list[Scan], list[Path]]:
    """Scans of imagesTr (label optional) and imagesUn (never a label)."""
    scans, strays = [], []
    for sub in ("imagesTr", "imagesUn"):
        files = [p for p in _files(folder / sub) if not is_clutter(p)]
        cases, other = group_channels(files, ending)
        strays += other
        for case, channels in cases.items():
            label = folder / "labelsTr" / f"{case}{ending}"
            images = tuple(channels.get(i, folder / sub / f"{case}_{i:04d}{ending}") for i in range(n_channels))
            strays += [path for number, path in channels.items() if number >= n_channels]
            has_label = sub == "imagesTr" and label.exists()
            scans.append(Scan(case=case, images=images, label=label if has_label else None))
    return scans, strays


def _listed_scans(folder: Path, source: Path, listing: object) -> list[Scan]:
    """Scans of the explicit form of dataset.json: {CASE: {"images": [...], "label": ...}}."""
    if not isinstance(listing, dict):
        raise BadInputError(f"{source}: dataset must map case names to their files")
    scans = []
    for case, entry in listing.items():
        if not case or any(c in case for c in "/\\\0\n\r") or case in (".", ".."):
            raise UnsafeError(f"{source}: dataset: case name {case!r} would leave its folder; rename the case")
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
            raise BadInputError(f'{source}: dataset: {case}: "images" must list a file a channel')
        label = entry.get("label")
        if not all(_is_path(text) for text in (case, *entry["images"], label or "")):
            raise BadInputError(f'{source}: dataset: {case[:100]!r}: "images" and "label" must be paths')
        paths = tuple(_resolve(folder, image) for image in entry["images"])
        scans.append(Scan(case=case, images=paths, label=_resolve(folder, label) if label else None))
    return scans


def _is_path(text: object) -> bool:
    """Whether the file system can be asked for it: encodable, no part longer than 255 bytes."""
    try:
        parts = os.fsencode(text).split(b"/") if isinstance(text, str) else [b"\0"]
    except UnicodeEncodeError:
        return False
    return all(b"\0" not in part and len(part) <= 255 for part in parts)


def _resolve(folder: Path, text: str) -> Path:
    return folder / os.path.expandvars(text)


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
