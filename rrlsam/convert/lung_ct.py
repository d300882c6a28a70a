"""CT scans with masks of the lungs: one file for both, or one a side."""

import logging
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.convert.lung_sides import LEFT, RIGHT, sides_are_swapped, sides_by_position, split_lungs
from rrlsam.convert.source import Source, SourceCase
from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.geometry import geometry_of
from rrlsam.scans.scan_checks import grid_differences
from rrlsam.scans.volume import ENDINGS, files_by_name, image_like, read_labels
from rrlsam.system.jsonio import record

_log = logging.getLogger(__name__)


@record
class LungOptions:
    """How the files are named and what the masks hold."""

    masks: Path | None = None
    """Folder of the masks; None: beside the scans."""
    image_suffix: str = ""
    """What a scan's name has after the case's."""
    mask_suffix: str | None = None
    """What a mask's name has after the case's; None: "_mask", or nothing in a folder of their own."""
    left_suffix: str | None = None
    """The same of a left lung's mask; only together with that of a right one."""
    right_suffix: str | None = None
    left_values: tuple[int, ...] = ()
    """Values of the left lung in a mask of both; none: told by their number and place."""
    right_values: tuple[int, ...] = ()
    one_lung: bool = False
    """Do not tell left from right."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Those of a case's mask files: one, or the left lung's and the right one's."""
        if self.left_suffix is not None and self.right_suffix is not None:
            return (self.left_suffix, self.right_suffix)
        return ("_mask" if self.masks is None else "",) if self.mask_suffix is None else (self.mask_suffix,)


def lung_ct(folder: Path, options: LungOptions) -> Source:
    """Understand a folder of scans and masks; UsageError for options or folders that do not fit together."""
    _check(folder, options)
    found = {name: files_by_name(folder if name == "scans" else options.masks or folder) for name in ("scans", "masks")}
    suffixes, beside = options.suffixes, options.masks in (None, folder)
    masks = {name: path for name, path in found["masks"].items() if name.endswith(suffixes)}
    scans = {
        name.removesuffix(options.image_suffix): path
        for name, path in found["scans"].items()
        if name.endswith(options.image_suffix) and not (beside and name in masks)
    }
    if not scans:
        raise BadInputError(f"{folder}: has no scan CASE{options.image_suffix} ending in {', '.join(ENDINGS)}")
    cases, problems = [], {}
    for name, image in scans.items():
        labels = tuple(masks.pop(name + suffix) for suffix in suffixes if name + suffix in masks)
        if len(labels) in (0, len(suffixes)):
            cases.append(SourceCase(name=name, image=image, labels=labels))
        else:
            problems[name] = f"{labels[0]}: the mask of the other lung is missing; add it or remove this one"
    for name, path in masks.items():
        problems[name] = f"{path}: a mask without a scan; add the scan or remove the mask"
    return Source(
        format="lung_ct",
        channel_name="CT",
        cases=tuple(cases),
        structures={"Lung": (LEFT,)} if options.one_lung else {"Left-Lung": (LEFT,), "Right-Lung": (RIGHT,)},
        known=frozenset({0, LEFT, RIGHT}),
        read_labels=lambda case: _read_sides(case, options),
        problems=problems,
    )


def _check(folder: Path, options: LungOptions) -> None:
    for path in (folder, options.masks):
        if path is not None and not path.is_dir():
            raise UsageError(f"{path}: no such folder")
    if (options.left_suffix is None) != (options.right_suffix is None):
        raise UsageError("--left_suffix and --right_suffix are needed together")
    if options.left_suffix is not None and options.mask_suffix is not None:
        raise UsageError("--mask_suffix is for one mask of both lungs; leave it out or --left_suffix")
    if options.left_suffix is not None and options.left_suffix == options.right_suffix:
        raise UsageError("--left_suffix and --right_suffix must differ")
    if bool(options.left_values) != bool(options.right_values) or set(options.left_values) & set(options.right_values):
        raise UsageError("--left_values and --right_values are needed together and may not share a value")
    if options.masks in (None, folder) and not all(options.suffixes):
        raise UsageError("masks beside the scans need a suffix that tells them apart; give --mask_suffix")


def _read_sides(case: SourceCase, options: LungOptions) -> sitk.Image:
    """1 in the left lung and 2 in the right one, or 1 in both."""
    sides = _joined(case.labels) if len(case.labels) == 2 else _of_one_file(case.labels[0], options)
    if options.one_lung:
        return sitk.Cast(sides != 0, sitk.sitkInt32)
    if sides_are_swapped(sides):
        _log.warning("%s: the left lung lies on the patient's right; check the mask and the directions", case.labels[0])
    return sides


def _joined(files: tuple[Path, ...]) -> sitk.Image:
    left, right = (read_labels(path) for path in files)
    differences = grid_differences(geometry_of(right), geometry_of(left))
    if differences:
        raise BadInputError(f"{files[1]}: its grid differs from that of {files[0].name}: {differences}; resample it")
    in_left, in_right = (sitk.GetArrayViewFromImage(mask) != 0 for mask in (left, right))
    for path, inside in zip(files, (in_left, in_right), strict=True):
        if not inside.any():
            raise BadInputError(f"{path}: is empty; label the lung or remove the masks")
    shared = int((in_left & in_right).sum())
    if shared:
        raise BadInputError(f"{files[0]}: shares {shared} voxels with {files[1].name}; correct one of them")
    return image_like(np.where(in_left, LEFT, np.where(in_right, RIGHT, 0)).astype(np.int32), left)


def _of_one_file(path: Path, options: LungOptions) -> sitk.Image:
    mask = read_labels(path)
    values = set(np.unique(sitk.GetArrayViewFromImage(mask)).tolist()) - {0}
    if not values:
        raise BadInputError(f"{path}: is empty; label the lungs or remove the file")
    if min(values) < 0:
        raise BadInputError(f"{path}: holds the value {min(values)}; label values must not be negative")
    if options.left_values:
        return _by_value(mask, values, path, options)
    if options.one_lung:
        return mask
    if len(values) == 1:
        return split_lungs(mask, str(path))
    if len(values) == 2:
        return sides_by_position(mask, str(path))
    raise BadInputError(
        f"{path}: holds {len(values)} values ({listed([str(v) for v in sorted(values)])}); say which are which with "
        "--left_values and --right_values"
    )


def _by_value(mask: sitk.Image, values: set[int], path: Path, options: LungOptions) -> sitk.Image:
    unknown = values.difference(options.left_values, options.right_values)
    if unknown:
        raise BadInputError(
            f"{path}: holds {listed([str(v) for v in sorted(unknown)])}, which --left_values and --right_values do not "
            "name; name them or correct the mask"
        )
    numbers = sitk.GetArrayViewFromImage(mask)
    left, right = np.isin(numbers, options.left_values), np.isin(numbers, options.right_values)
    return image_like(np.where(left, LEFT, np.where(right, RIGHT, 0)).astype(np.int32), mask)
