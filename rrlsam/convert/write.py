"""Write a raw data set from what a converter found: whole or not at all."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Shaped

from rrlsam.convert.source import Source, SourceCase
from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.geometry import geometry_of
from rrlsam.scans.dataset import HIGHEST_NUMBER, numbered
from rrlsam.scans.scan_checks import grid_differences
from rrlsam.scans.volume import label_dtype, read_image, read_labels, write_image, write_like
from rrlsam.system.files import atomic_write, real, require_writable
from rrlsam.system.jsonio import record, save_json
from rrlsam.system.parallel import attempt_each
from rrlsam.system.progress import Progress, silent
from rrlsam.system.staging import staged_folder

ENDING = ".nii.gz"
RECORD = "conversion.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_log = logging.getLogger(__name__)


@record
class Conversion:
    """What was made of a source; kept as `RECORD` in the data set."""

    format: str
    labelled: int
    unlabelled: int
    structures: dict[str, tuple[int, ...]]
    """Name to the source's numbers; dataset.json numbers them from 1 in this order."""
    absent: tuple[str, ...]
    """Structures that were looked for and that no label map has."""
    failures: dict[str, str]
    """Case to reason, for cases that were left out."""


def claim_folder(raw: Path, number: int, name: str, *, overwrite: bool, sources: Iterable[Path]) -> Path:
    """The folder of the data set to write; UsageError if name, number or folder cannot be taken.

    Only what a conversion wrote is replaced, and never a folder that holds one of the `sources`.
    """
    if not 1 <= number <= HIGHEST_NUMBER:
        raise UsageError(f"-d {number}: the number of a data set lies between 1 and {HIGHEST_NUMBER}")
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: letters, digits, - and _ only")
    folder = raw / f"{numbered(number)}{name}"
    for other in sorted(raw.glob(f"{numbered(number)}*")):
        if other != folder:
            raise UsageError(f"{other}: has the number {number} already; choose another with -d")
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: exists already; give --overwrite, another number or another name")
    if folder.exists() and not (folder / RECORD).is_file():
        raise UsageError(f"{folder}: was not converted and is not replaced; remove it or choose another name")
    for source in sources:
        if real(source).is_relative_to(real(folder)):
            raise UsageError(f"{folder}: holds what is to be converted, {source}; choose another name")
    return folder


def write_dataset(
    source: Source, folder: Path, *, workers: int | None = None, progress: Progress = silent
) -> Conversion:
    """Write labelled cases to imagesTr and labelsTr, others to imagesUn; what lay at `folder` is replaced.

    A bad case is left out and named in the result. BadInputError if no labelled case is left.
    """
    labelled = {case.name for case in source.cases if case.labels}
    require_writable(folder.parent)
    with staged_folder(folder) as staging:
        done, problems = attempt_each(
            lambda case: _convert(case, source, staging),
            {case.name: case for case in source.cases},
            "Converting",
            workers=workers,
            progress=progress,
        )
        failures = dict(source.problems) | {name: str(error) for name, error in problems.items()}
        if not labelled & set(done):
            reasons = listed(list(failures.values()), "; ") or "no scan has labels"
            raise BadInputError(f"no labelled case can be converted, nothing was written: {reasons}")
        absent = set(source.structures.values()).difference(*done.values())
        conversion = Conversion(
            format=source.format,
            labelled=len(labelled & set(done)),
            unlabelled=len(set(done) - labelled),
            structures={name: v for name, v in source.structures.items() if v not in absent},
            absent=tuple(name for name, v in source.structures.items() if v in absent),
            failures=dict(sorted(failures.items())),
        )
        if conversion.absent:
            _log.info("no label map has %s: left out", ", ".join(conversion.absent))
            _close_gaps(source, conversion, staging)
        _write_json(source, conversion, folder.name, staging)
    return conversion


def _convert(case: SourceCase, source: Source, folder: Path) -> set[tuple[int, ...]]:
    """Write a case; the numbers of the structures that it has."""
    image = read_image(case.image)
    present: set[tuple[int, ...]] = set()
    if case.labels:
        numbers = _checked_labels(case, source, image)
        found = set(np.unique(numbers).tolist())
        present = {wanted for wanted in source.structures.values() if found & set(wanted)}
        values = {n: value for value, wanted in enumerate(source.structures.values(), 1) for n in wanted}
        array = _mapped(numbers, values, len(source.structures))
        write_like(array, image, folder / "labelsTr" / f"{case.name}{ENDING}")
    target = folder / ("imagesTr" if case.labels else "imagesUn") / f"{case.name}_0000{ENDING}"
    if case.image.name.endswith(ENDING):
        with atomic_write(target) as temporary:
            shutil.copyfile(case.image, temporary)
    else:
        write_image(image, target)
    return present


def _checked_labels(case: SourceCase, source: Source, image: sitk.Image) -> Shaped[np.ndarray, "z y x"]:
    labels = source.read_labels(case)
    differences = grid_differences(geometry_of(labels), geometry_of(image))
    if differences:
        raise BadInputError(
            f"{case.labels[0]}: its grid differs from that of {case.image.name}: {differences}; resample the labels"
        )
    numbers = sitk.GetArrayFromImage(labels)
    values, counts = np.unique(numbers, return_counts=True)
    unknown = [f"{v} ({n} voxels)" for v, n in zip(values, counts, strict=True) if int(v) not in source.known]
    if unknown:
        raise BadInputError(
            f"{case.labels[0]}: holds numbers that no structure is known for: {listed(unknown)}; correct the label map"
        )
    return numbers


def _mapped(
    numbers: Shaped[np.ndarray, "z y x"], values: Mapping[int, int], largest: int
) -> Shaped[np.ndarray, "z y x"]:
    """Other values for a label map; what `values` does not name becomes 0."""
    table = np.zeros(max(int(numbers.max()), *values) + 1, dtype=label_dtype(largest))
    for old, new in values.items():
        table[old] = new
    return table[numbers]


def _close_gaps(source: Source, conversion: Conversion, folder: Path) -> None:
    """Number the structures that there are consecutively, as dataset.json must."""
    old = {name: value for value, name in enumerate(source.structures, 1)}
    values = {old[name]: new for new, name in enumerate(conversion.structures, 1)}
    for path in sorted((folder / "labelsTr").iterdir()):
        labels = read_labels(path)
        write_like(_mapped(sitk.GetArrayFromImage(labels), values, len(values)), labels, path)


def _write_json(source: Source, conversion: Conversion, name: str, folder: Path) -> None:
    content = {
        "name": name.partition("_")[2],
        "channel_names": {"0": source.channel_name},
        "labels": {"background": 0} | {structure: i for i, structure in enumerate(conversion.structures, 1)},
        "numTraining": conversion.labelled,
        "file_ending": ENDING,
    }
    save_json(conversion, folder / RECORD)
    with atomic_write(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
