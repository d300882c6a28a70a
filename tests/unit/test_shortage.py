"""Too little memory, and GPUs that go away: told in our words, and refused before the system ends the process."""

import dataclasses
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rrlsam.cli.common import make_parser, run
from rrlsam.errors import DeviceLostError, GpuMemoryError, ResourceError
from rrlsam.models import model_size
from rrlsam.registration.pair import Registration
from rrlsam.registration.register_scans import Moving, Output, RegistrationReport, read_moving, register_scans
from rrlsam.scans.inputs import find_inputs
from rrlsam.scans.volume import read_channels, read_image
from rrlsam.system import resources
from rrlsam.system.progress import silent
from rrlsam.system.resources import Memory, require_memory, usable_memory, workers_within_memory
from rrlsam.system.shortage import shortage_of, shortages_told

LOST = "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported asynchronously"


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that so many bytes are free."""
    return lambda n: monkeypatch.setattr(resources, "usable_memory", lambda: Memory(total=n, free=n))


@pytest.mark.parametrize(
    "take",
    [lambda: torch.empty(1 << 48), lambda: np.empty(1 << 48), lambda: sitk.Image([1 << 20] * 3, sitk.sitkFloat64)],
    ids=["torch", "numpy", "SimpleITK"],
)
def test_a_library_that_gets_no_memory_is_understood(take):
    with pytest.raises(ResourceError, match=r"^not enough memory \(.*allocate.*-np 1") as told, shortages_told():
        take()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), GpuMemoryError),
        (torch.AcceleratorError(LOST), DeviceLostError),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceLostError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLostError),
        (RuntimeError("can't start new thread"), ResourceError),
        (ImportError("libx.so: failed to map segment from shared object"), ResourceError),
        (MemoryError(), ResourceError),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_told_in_one_line(error, kind):
    told = shortage_of(error)
    assert type(told) is kind
    assert "\n" not in str(told)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("CUDA error")])
def test_other_errors_are_not_taken_for_shortages(error):
    assert shortage_of(error) is None
    with pytest.raises(type(error)), shortages_told():
        raise error


def test_a_command_without_memory_ends_with_one_line_and_code_4(capsys):
    assert run(lambda arguments: int(torch.empty(1 << 48).sum()), make_parser("rrlsam_x", ""), []) == 4
    said = capsys.readouterr().err
    assert said.startswith("rrlsam_x: not enough memory (")
    assert said.count("\n") == 1


@pytest.fixture
def address_space() -> Iterator[Callable[[int], None]]:
    """Limit this process's address space as `ulimit -v` does."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield lambda n: resource.setrlimit(resource.RLIMIT_AS, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_limit_of_the_address_space_counts_as_memory(address_space):
    taken = resources._address_space(Path("/proc"))
    address_space(taken + (100 << 20))
    memory = usable_memory()
    assert memory.total <= taken + (100 << 20)
    assert memory.free <= 100 << 20


def test_a_scan_for_which_memory_does_not_suffice_is_refused_before_it_is_read(free, phantoms, tmp_path):
    path = tmp_path / "scan.nii.gz"
    phantoms.write_volume(phantoms.phantom(0)[0][0], path)
    free(1_000_000)
    assert read_image(path).GetSize() == (22, 24, 20)
    free(100_000)
    with pytest.raises(ResourceError, match=r"scan\.nii\.gz: needs 0 MB of memory, 0 MB are free; .*crop"):
        read_image(path)


def test_all_channels_of_a_scan_count(free, phantoms, tmp_path):
    paths = tuple(tmp_path / f"scan_{i:04d}.nii.gz" for i in range(4))
    for path in paths:
        phantoms.write_volume(phantoms.phantom(0)[0][0], path)
    free(1_000_000)
    with pytest.raises(ResourceError, match="of memory"):
        read_channels(paths)


def test_a_bomb_is_refused_before_it_is_unpacked(free, tmp_path):
    path = tmp_path / "bomb.nii.gz"
    sitk.WriteImage(sitk.Image(300, 300, 300, sitk.sitkUInt8), str(path))
    assert path.stat().st_size < 100_000
    free(100_000_000)
    with pytest.raises(ResourceError, match=r"bomb\.nii\.gz: needs 1,080 MB of memory"):
        read_image(path)


def test_there_are_no_more_workers_than_memory_is_for(free):
    free(1000)
    assert [workers_within_memory(8, n) for n in (0, 100, 300, 400, 5000)] == [8, 8, 3, 2, 1]


def test_enough_memory_is_not_refused(free):
    free(1000)
    require_memory(1000, "x", "y")
    with pytest.raises(ResourceError, match=r"^x: needs"):
        require_memory(1001, "x", "y")


def test_larger_patches_need_more_memory_and_training_more_than_prediction(make_plan):
    plan = make_plan()
    z, y, x = plan.grid.size_vox
    size = (2 * z, 2 * y, 2 * x)
    grid = dataclasses.replace(plan.grid, size_vox=size, registration_size_vox=size, patch_vox=size)
    larger = dataclasses.replace(plan, grid=grid)
    assert 6 < model_size.training_bytes(larger) / model_size.training_bytes(plan) < 9
    assert 6 < model_size.prediction_bytes(larger) / model_size.prediction_bytes(plan) < 9
    assert model_size.training_bytes(plan) > model_size.prediction_bytes(plan)
    one, two, three = (model_size.prediction_bytes(plan, n) for n in (1, 2, 3))
    assert three - two == two - one > 0


class Failing:
    """A registrar that the machine cannot serve."""

    method, iterations, expects_likeness = "none", 0, False

    def __init__(self, error: Exception) -> None:
        self.error = error

    def register(self, fixed: sitk.Image, moving: Moving) -> Registration:
        raise self.error


def register_two(phantoms: Any, folder: Path, error: Exception) -> RegistrationReport:
    for name in ("a", "b"):
        phantoms.write_volume(phantoms.phantom(0)[0][0], folder / "in" / f"{name}_0000.nii.gz")
    scans = find_inputs(folder / "in", 1)
    return register_scans(scans, read_moving(scans[0], None), Failing(error), Output(folder=folder / "out"), silent)


def test_memory_that_does_not_suffice_for_a_registration_stops_no_other(phantoms, tmp_path):
    report = register_two(phantoms, tmp_path, MemoryError("Unable to allocate 9 GiB"))
    assert [failure.case for failure in report.failures] == ["a", "b"]
    assert all("not enough memory (Unable" in failure.reason for failure in report.failures)


def test_a_gpu_that_goes_away_ends_the_registrations(phantoms, tmp_path):
    with pytest.raises(DeviceLostError, match="nvidia-smi"):
        register_two(phantoms, tmp_path, torch.AcceleratorError(LOST))
