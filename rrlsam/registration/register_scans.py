"""Registration of files: every scan of a folder, or a pair, to the transforms and warped images of each."""

import dataclasses
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import SimpleITK as sitk

from rrlsam.engine.device import Device
from rrlsam.errors import DeviceLostError, RrlsamError, UsageError
from rrlsam.geometry import geometry_of, itk_affine, to_sitk
from rrlsam.registration.apply import warp_image, warp_labels
from rrlsam.registration.learn2reg import check_learn2reg, learn2reg_name, save_learn2reg
from rrlsam.registration.pair import PairTransform, Registration, field_image, in_voxels, on_scan
from rrlsam.registration.register import optimise
from rrlsam.registration.transform_files import ENDINGS, TransformDescription, save_transform
from rrlsam.scans.inputs import InputScan
from rrlsam.scans.likeness import is_unlike, likeness
from rrlsam.scans.scan_checks import read_label_beside
from rrlsam.scans.volume import channels_first, channels_of, read_telling, to_canonical, write_image
from rrlsam.system.files import real
from rrlsam.system.isolation import one_case, tell_failure
from rrlsam.system.jsonio import record, save_json
from rrlsam.system.own_results import own_results
from rrlsam.system.progress import Progress

REPORT = "registration.json"
_WARPED, _INVERSE_WARPED, _WARPED_LABELS = "_Warped", "_InverseWarped", "_WarpedLabels"
"""What follows the case in the names of warped images."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Moving:
    """What is brought to every fixed scan."""

    name: str
    image: sitk.Image
    labels: sitk.Image | None


@runtime_checkable
class Registrar(Protocol):
    """A way to register: by a model, or by optimisation alone."""

    @property
    def method(self) -> str:
        """For the description."""
        ...

    @property
    def iterations(self) -> int:
        """Steps of refinement or optimisation at each resolution."""
        ...

    @property
    def expects_likeness(self) -> bool:
        """Whether it is made for scans of one kind."""
        ...

    def register(self, fixed: sitk.Image, moving: Moving) -> Registration:
        """Register a moving scan to a fixed one."""
        ...


@dataclass(frozen=True, kw_only=True)
class ByOptimisation:
    """No network: affine, then the field, for the pair alone."""

    metric: str
    iterations: int
    device: Device

    @property
    def method(self) -> str:
        """For the description."""
        return f"optimisation, {self.metric}"

    @property
    def expects_likeness(self) -> bool:
        """MIND compares scans of any two kinds."""
        return self.metric != "mind"

    def register(self, fixed: sitk.Image, moving: Moving) -> Registration:
        """By `iterations` steps at each resolution."""
        return optimise(fixed, moving.image, metric=self.metric, iterations=self.iterations, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go, and in which further form."""

    folder: Path
    learn2reg: bool = False
    short_names: bool = False


@record
class Failure:
    """A scan that could not be registered."""

    case: str
    reason: str


@record
class RegistrationReport:
    """OUT/registration.json."""

    moving: str
    method: str
    registered: tuple[TransformDescription, ...]
    failures: tuple[Failure, ...]


def read_moving(scan: InputScan, labels: Path | None) -> Moving:
    """A moving scan and its labels, if there are any; those of its size must lie on it, or may be laid onto it."""
    image = read_telling(scan.images, scan.repairs)
    if labels is None:
        return Moving(name=scan.case, image=image, labels=None)
    label, mended = read_label_beside(labels, scan.images[0], image, scan.repairs)
    for text in mended:
        _log.warning("%s", text)
    return Moving(name=scan.case, image=image, labels=label)


def register_scans(
    scans: Sequence[InputScan], moving: Moving, registrar: Registrar, output: Output, progress: Progress
) -> RegistrationReport:
    """Register and write every scan, and OUT/registration.json. A bad scan does not stop the others."""
    registered, failures = [], []
    with progress("Registering", len(scans)) as advance:
        for scan in scans:
            try:
                with one_case(scan.case):
                    registered.append(register_scan(scan, moving, registrar, output))
            except DeviceLostError:
                raise
            except RrlsamError as error:
                tell_failure(len(failures), scan.case, error)
                failures.append(Failure(case=scan.case, reason=str(error)))
            advance()
    report = RegistrationReport(
        moving=moving.name, method=registrar.method, registered=tuple(registered), failures=tuple(failures)
    )
    with own_results(output.folder, REPORT) as folder:
        save_json(report, folder / REPORT)
    return report


def register_scan(scan: InputScan, moving: Moving, registrar: Registrar, output: Output) -> TransformDescription:
    """Register one scan and write what belongs to it."""
    fixed = read_telling(scan.images, scan.repairs)
    if output.learn2reg:
        check_learn2reg(scan.case, moving.name, geometry_of(fixed), geometry_of(moving.image))
    began = time.monotonic()
    found = registrar.register(fixed, moving)
    transform = on_scan(found, geometry_of(fixed), geometry_of(moving.image))
    seconds = time.monotonic() - began
    if found.alignment != "affine":
        _log.warning(
            "%s: no plausible affine alignment was found; the scans were only shifted onto each other", scan.case
        )
    warped = warp_image(moving.image, transform)
    alike = _likeness(fixed, warped, moving, transform)
    if is_unlike(alike) and registrar.expects_likeness:
        _log.warning(
            "%s: its intensities hardly follow those of %s (correlation %.2f): is it of another modality? Without a "
            "model, -metric mind registers scans of two kinds",
            scan.case,
            moving.name,
            alike,
        )
    with own_results(output.folder, scan.case) as folder:
        _write_warped(scan, fixed, moving, warped, transform, dataclasses.replace(output, folder=folder))
        return save_transform(
            transform,
            folder / scan.case,
            fixed_name=scan.case,
            moving_name=moving.name,
            method=registrar.method,
            alignment=found.alignment,
            refinement_iterations=registrar.iterations,
            seconds=seconds,
            body=foreground(fixed),
            likeness=alike,
        )


def _likeness(fixed: sitk.Image, warped: sitk.Image, moving: Moving, transform: PairTransform) -> float | None:
    """Of the first channels, where the moving scan has data."""
    grid = geometry_of(moving.image)
    inside = warp_image(to_sitk(np.ones(grid.shape, np.float32), grid), transform)
    first, second = (sitk.GetArrayFromImage(channels_of(image)[0]) for image in (fixed, warped))
    return likeness(first, second, sitk.GetArrayFromImage(inside) > 0.5)


def foreground(image: sitk.Image) -> np.ndarray:
    """Where a scan's first channel is brighter than Otsu's threshold, (z, y, x): for reporting."""
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(channels_of(image)[0], 0, 1)).astype(bool)


def require_safe_registration(
    folder: Path, cases: Iterable[str], inputs: Iterable[Path | None], *, writes_atlas: bool = False
) -> None:
    """UsageError if files of a registration to these cases would take the place of what is registered."""
    transforms = "|".join(map(re.escape, ENDINGS.values()))
    warped = rf"({_WARPED}|{_INVERSE_WARPED}|{_WARPED_LABELS})(_\d{{4}})?\.nii\.gz"
    names = [re.compile(f"{re.escape(case)}({transforms}|{warped})") for case in cases]
    if writes_atlas:
        names.append(re.compile(r"atlas(_labels|_\d{4})?\.nii\.gz"))
    for path in inputs:
        beside = path is not None and real(path).parent == real(folder)
        if path is not None and beside and any(name.fullmatch(path.name) for name in names):
            raise UsageError(f"-o {folder}: {path.name} would be replaced; give another folder")


def write_channels(image: sitk.Image, folder: Path, name: str) -> None:
    """NAME.nii.gz, or NAME_0000.nii.gz and so on for several channels."""
    channels = channels_of(image)
    for number, channel in enumerate(channels):
        write_image(channel, folder / (f"{name}_{number:04d}.nii.gz" if len(channels) > 1 else f"{name}.nii.gz"))


def _write_warped(
    scan: InputScan, fixed: sitk.Image, moving: Moving, warped: sitk.Image, transform: PairTransform, output: Output
) -> None:
    """Each scan in the other's space, the labels, and the field for Learn2Reg."""
    write_channels(warped, output.folder, scan.case + _WARPED)
    write_channels(warp_image(fixed, transform, inverse=True), output.folder, scan.case + _INVERSE_WARPED)
    _draw(fixed, moving.image, warped, transform, output.folder / f"{scan.case}_Registration.png")
    if moving.labels is not None:
        write_image(warp_labels(moving.labels, transform), output.folder / f"{scan.case}{_WARPED_LABELS}.nii.gz")
    if output.learn2reg:
        name = learn2reg_name(scan.case, moving.name, short=output.short_names)
        save_learn2reg(transform, output.folder / name)


def _draw(fixed: sitk.Image, moving: sitk.Image, warped: sitk.Image, transform: PairTransform, path: Path) -> None:
    """A picture of the first channels and the field, axes turned to left, posterior, superior."""
    from rrlsam.pictures import registration_picture

    still, moved, pulled = (channels_of(image)[0] for image in (fixed, moving, warped))
    aligned = sitk.Resample(moved, still, itk_affine(transform.affine), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    field = to_canonical(field_image(transform.field, transform.fixed))
    turned = geometry_of(field)
    displacement = in_voxels(channels_first(field), turned)
    images = [sitk.GetArrayFromImage(to_canonical(image)) for image in (still, aligned, pulled)]
    registration_picture(images[0], images[1], images[2], displacement, turned.spacing_mm, path)
