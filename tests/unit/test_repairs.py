"""What is mended only where that was asked for."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.errors import BadInputError
from rrlsam.geometry import geometry_of
from rrlsam.scans.integrity import check_dataset, require_sound
from rrlsam.scans.repairs import Repairs
from rrlsam.scans.scan_checks import Finding, read_own_label
from rrlsam.scans.volume import channels_first, read_channels, read_image, read_mended, read_telling, same_grid

FIX = Repairs(fix_nonfinite=True)
ALLOW = Repairs(allow_geometry_mismatch=True)
HOLES = {(1, 2, 3): np.nan, (2, 2, 2): np.inf, (3, 1, 1): -np.inf}


@pytest.fixture
def holed(tmp_path, phantoms):
    """Writes a scan of values from 5 up with NaN and both infinities in it; gives its path and its sound array."""

    def make(ending):
        array = np.random.default_rng(0).uniform(5, 90, (6, 7, 8)).astype(np.float32)
        spoilt = array.copy()
        for where, value in HOLES.items():
            spoilt[where] = value
        path = tmp_path / f"scan_0000{ending}"
        phantoms.write_volume(spoilt, path, spacing=(1.0, 1.5, 2.0), origin=(-5.0, 3.0, 8.0))
        return path, spoilt

    return make


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_voxels_that_are_not_finite_are_replaced_only_if_asked_for(holed, ending):
    path, spoilt = holed(ending)
    with pytest.raises(BadInputError, match=r"NaN or infinite voxels; replace them .* --fix_nonfinite"):
        read_channels((path,))
    image, told = read_mended((path,), FIX)
    found, sound = channels_first(image)[0], np.isfinite(spoilt)
    assert np.array_equal(found[sound], spoilt[sound])
    low, high = spoilt[sound].min(), spoilt[sound].max()
    assert [found[where] for where in HOLES] == [low, high, low]
    assert told == (f"{path}: 3 NaN or infinite voxels; replaced, as was asked for",)
    assert image.GetOrigin() == (-5.0, 3.0, 8.0)


def test_a_scan_without_one_finite_voxel_stays_refused(tmp_path, phantoms):
    phantoms.write_volume(np.full((4, 4, 4), np.nan, np.float32), tmp_path / "a.nii.gz")
    with pytest.raises(BadInputError, match="no finite voxel at all"):
        read_mended((tmp_path / "a.nii.gz",), FIX)


def test_label_maps_with_nan_stay_refused(holed):
    with pytest.raises(BadInputError, match="NaN"):
        read_image(holed(".nii.gz")[0])


def test_a_sound_scan_is_read_alike_with_all_repairs(tmp_path, phantoms):
    path = tmp_path / "scan.nii.gz"
    phantoms.write_volume(phantoms.phantom(1)[0][0], path)
    image, told = read_mended((path,), Repairs(fix_nonfinite=True, allow_geometry_mismatch=True))
    assert told == ()
    assert np.array_equal(channels_first(image), channels_first(read_channels((path,))))


def test_channels_that_lie_apart_are_laid_on_the_first_only_if_asked_for(tmp_path, phantoms):
    array = phantoms.phantom(1)[0][0]
    paths = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    phantoms.write_volume(array, paths[0])
    phantoms.write_volume(array, paths[1], origin=(5.0, 0.0, 0.0))
    with pytest.raises(BadInputError, match="channels must share one grid"):
        read_channels(paths)
    image, told = read_mended(paths, ALLOW)
    assert image.GetOrigin() == (0.0, 0.0, 0.0)
    assert np.array_equal(*channels_first(image))
    assert "a_0001.nii.gz: its grid differs from that of a_0000.nii.gz" in told[0]


def test_channels_of_another_size_stay_refused(tmp_path, phantoms):
    array = phantoms.phantom(1)[0][0]
    paths = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    phantoms.write_volume(array, paths[0])
    phantoms.write_volume(array[1:], paths[1])
    with pytest.raises(BadInputError, match="channels must share one grid"):
        read_mended(paths, ALLOW)


@pytest.fixture
def shifted(tiny, phantoms):
    """A data set in which the label of lab_00 lies 5 mm beside its scan."""
    phantoms.write_volume(phantoms.phantom(0)[1], tiny.label_of("lab_00"), origin=(0.0, 5.0, 0.0))
    return tiny


def test_a_label_beside_its_scan_is_an_error_or_a_warning_if_allowed(shifted):
    (error,) = check_dataset(shifted)
    assert (error.severity, "--allow_geometry_mismatch" in error.fix) == ("error", True)
    (warning,) = check_dataset(shifted.with_repairs(ALLOW))
    assert warning.severity == "warning"
    assert "origin (0, 5, 0) instead of (0, 0, 0)" in warning.problem


def test_a_label_beside_its_scan_is_read_where_the_scan_lies(shifted):
    scan = shifted.scan("lab_00")
    image = read_channels(scan.images)
    assert not same_grid(geometry_of(read_own_label(scan)), geometry_of(image))
    laid = read_own_label(dataclasses.replace(scan, repairs=ALLOW))
    assert same_grid(geometry_of(laid), geometry_of(image))
    assert np.array_equal(sitk.GetArrayFromImage(laid), phantom_label(shifted))


def phantom_label(dataset):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(dataset.label_of("lab_00"))))


def test_a_label_of_another_size_stays_an_error(tiny, phantoms):
    phantoms.write_volume(phantoms.phantom(0)[1][1:], tiny.label_of("lab_00"))
    assert [finding.severity for finding in check_dataset(tiny.with_repairs(ALLOW))] == ["error"]


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_of_a_thousand_findings_ten_are_told_and_all_are_written(tmp_path, caplog, severity):
    found = [Finding(severity=severity, file=f"f{i:04d}\udc80", problem="odd", fix="mend it") for i in range(1000)]
    report = tmp_path / "report.json"
    told = ""
    try:
        require_sound(found, report)
    except BadInputError as error:
        told = str(error)
    lines = [*told.splitlines(), *(record.getMessage() for record in caplog.records)]
    assert len(lines) <= 12
    assert "990" in lines[-1]
    assert str(report) in lines[-1]
    assert len(json.loads(report.read_text())["findings"]) == 1000


def test_what_is_mended_for_a_registration_is_logged(holed, caplog):
    image = read_telling((holed(".nrrd")[0],), FIX)
    assert "3 NaN or infinite voxels; replaced" in caplog.text
    assert np.isfinite(sitk.GetArrayFromImage(image)).all()
