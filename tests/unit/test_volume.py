import errno
import gzip
import os
import re
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.geometry import Geometry, geometry_of, matrix_rows
from rrlsam.scans import volume
from rrlsam.scans.volume import (
    ENDINGS,
    channels_first,
    read_channels,
    read_image,
    read_labels,
    same_grid,
    to_canonical,
    write_like,
)


@pytest.fixture
def scan(tmp_path, phantoms):
    """A written scan, and its array."""
    array = phantoms.phantom(1)[0][0]
    path = tmp_path / "scan.nii.gz"
    phantoms.write_volume(array, path, spacing=(1.0, 1.5, 2.0), origin=(-5.0, 3.0, 8.0))
    return path, array


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_reads_back_what_was_written(scan, tmp_path, ending):
    path, array = scan
    reference = read_image(path)
    mask = (array > 50).astype(np.uint8)
    write_like(mask, reference, tmp_path / f"mask{ending}")
    back = read_labels(tmp_path / f"mask{ending}")
    assert np.array_equal(sitk.GetArrayFromImage(back), mask)
    assert volume.same_grid(geometry_of(back), geometry_of(reference))


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.img", "x.hdr", "a.b.c", "x."])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_case_may_be_named_like_a_file(scan, tmp_path, name, ending):
    reference = read_image(scan[0])
    there = set(tmp_path.iterdir())
    write_like(scan[1], reference, tmp_path / f"{name}{ending}")
    assert set(tmp_path.iterdir()) - there == {tmp_path / f"{name}{ending}"}
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / f"{name}{ending}")), scan[1])


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_cut_nifti_is_refused_with_byte_counts(scan, kept):
    path, _ = scan
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(BadInputError, match=r"scan.nii.gz: corrupt or cut short, .* of 42,240 bytes"):
        read_image(path)


def test_a_cut_uncompressed_nifti_is_refused(scan, tmp_path):
    plain = tmp_path / "scan.nii"
    plain.write_bytes(gzip.decompress(scan[0].read_bytes())[:-1000])
    with pytest.raises(BadInputError, match="cut short, 41,240 of 42,240 bytes"):
        read_image(plain)


def test_a_flipped_byte_is_called_corrupt(scan):
    content = bytearray(scan[0].read_bytes())
    content[len(content) // 2] ^= 0xFF
    scan[0].write_bytes(content)
    with pytest.raises(BadInputError, match="corrupt"):
        read_image(scan[0])


def test_what_lies_behind_the_compressed_data_is_told_and_left_out(scan, caplog):
    whole = sitk.GetArrayFromImage(read_image(scan[0]))
    scan[0].write_bytes(scan[0].read_bytes() + b"junk" * 250)
    assert np.array_equal(sitk.GetArrayFromImage(read_image(scan[0])), whole)
    assert "scan.nii.gz: what lies behind the compressed data is left out" in caplog.text


def test_two_compressed_members_are_one_file(scan):
    whole, raw = sitk.GetArrayFromImage(read_image(scan[0])), gzip.decompress(scan[0].read_bytes())
    scan[0].write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]))
    assert np.array_equal(sitk.GetArrayFromImage(read_image(scan[0])), whole)


def test_a_header_that_claims_more_than_a_small_file_can_hold_is_refused_unread(scan):
    _patch_header(scan[0], 42, struct.pack("<3h", 1500, 1500, 1500))
    with pytest.raises(BadInputError, match="claims 13,500,000,000 bytes of voxels, more than it can hold"):
        read_image(scan[0])


@pytest.mark.parametrize("look", [read_image, volume.content_of])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_file_that_the_system_does_not_read_is_a_bad_file(scan, monkeypatch, look, code):
    def refuse(path, *_arguments, **_options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(volume.Path, "open", refuse)
    with pytest.raises(BadInputError, match=rf"scan\.nii\.gz: cannot be read \({os.strerror(code)}\)"):
        look(scan[0])


def test_a_machine_without_free_handles_is_not_the_files_fault(scan, monkeypatch):
    def refuse(path, *_arguments, **_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(volume.Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(scan[0])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_cut_files_of_other_formats_are_called_corrupt(scan, tmp_path, ending):
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.ReadImage(str(scan[0])), str(path))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadInputError, match=f"scan{ending}: cannot be read, corrupt"):
        read_image(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_sheared_files_of_other_formats_are_refused(scan, tmp_path, ending):
    path = tmp_path / f"scan{ending}"
    image = sitk.ReadImage(str(scan[0]))
    image.SetDirection((1.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(path))
    with pytest.raises(BadInputError, match="not at right angles"):
        read_image(path)


def test_a_header_of_another_format_cannot_claim_more_than_the_file_holds(scan, tmp_path):
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(scan[0])), str(path))
    path.write_bytes(re.sub(rb"sizes: [\d ]+", b"sizes: 40000 40000 40000", path.read_bytes(), count=1))
    with pytest.raises(BadInputError, match="claims 64,000,000,000,000 voxels, more than it can hold"):
        read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_voxels_that_are_not_finite_are_refused(tmp_path, phantoms, value, ending):
    array = phantoms.phantom(1)[0][0]
    array[3, 4, 5] = value
    phantoms.write_volume(array, tmp_path / f"scan{ending}")
    with pytest.raises(BadInputError, match="NaN or infinite"):
        read_channels((tmp_path / f"scan{ending}",))


def _patch_header(path, offset: int, content: bytes) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_an_impossible_spacing_is_refused(scan, spacing):
    _patch_header(scan[0], 80, struct.pack("<f", spacing))
    with pytest.raises(BadInputError, match="must be positive"):
        read_image(scan[0])


@pytest.mark.parametrize(
    ("size", "message"), [(32000, "impossible size"), (0, "impossible size"), (-3, "corrupt|impossible")]
)
def test_an_impossible_size_is_refused(scan, size, message):
    _patch_header(scan[0], 42, struct.pack("<3h", size, size, size))
    with pytest.raises(BadInputError, match=message):
        read_image(scan[0])


def test_a_sheared_grid_is_refused(scan):
    _patch_header(scan[0], 252, struct.pack("<h", 0))
    _patch_header(scan[0], 280, struct.pack("<12f", -1, 0.1, 0, 0, 0, -1.5, 0, 0, 0, 0, 2, 0))
    with pytest.raises(BadInputError, match="sheared grid"):
        read_image(scan[0])


@pytest.mark.parametrize(("size", "message"), [((8, 8, 1), "two-dimensional"), ((6, 6, 6, 5), "4-D image")])
def test_images_that_are_not_volumes_are_refused(tmp_path, size, message):
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.Image(size, sitk.sitkFloat32), str(path))
    with pytest.raises(BadInputError, match=message):
        read_image(path)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    sitk.WriteImage(sitk.Image((6, 7, 8, 1), sitk.sitkFloat32), str(tmp_path / "scan.nrrd"))
    assert read_image(tmp_path / "scan.nrrd").GetSize() == (6, 7, 8)


def test_colour_images_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), str(tmp_path / "scan.nrrd"))
    with pytest.raises(BadInputError, match="single real numbers"):
        read_image(tmp_path / "scan.nrrd")


def test_files_that_are_no_images_are_refused(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    for name, message in (("empty", "file is empty"), ("pipe", "not a regular file"), ("absent", "cannot be read")):
        with pytest.raises(BadInputError, match=message):
            read_image(tmp_path / f"{name}.nii.gz")
    with pytest.raises(BadInputError, match="unknown file ending"):
        volume.ending_of(tmp_path / "scan.png")


def test_channels_must_share_one_grid(scan, tmp_path, phantoms):
    phantoms.write_volume(scan[1], tmp_path / "other.nii.gz", spacing=(1.0, 1.5, 2.2))
    with pytest.raises(BadInputError, match="channels must share one grid"):
        read_channels((scan[0], tmp_path / "other.nii.gz"))


def test_channels_that_differ_by_rounding_are_read_together(scan, tmp_path, phantoms):
    spacing, origin = (1.0, 1.5, 2.0), (-5.0001, 3.0, 8.0)
    phantoms.write_volume(scan[1] + 1, tmp_path / "other.nii.gz", spacing=spacing, origin=origin)
    both = read_channels((scan[0], tmp_path / "other.nii.gz"))
    np.testing.assert_array_equal(channels_first(both), [scan[1], scan[1] + 1])
    assert both.GetOrigin() == read_image(scan[0]).GetOrigin()


def test_a_grid_whose_axes_change_places_is_another_one():
    """First and last voxel of both lie in the same places."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    grid, turned = (Geometry(shape=(5, 6, 6), affine=matrix_rows(m)) for m in (affine, affine[[1, 0, 2, 3]]))
    assert same_grid(grid, grid)
    assert not same_grid(grid, turned)


def test_channels_come_first(scan):
    assert channels_first(read_channels((scan[0],))).shape == (1, *scan[1].shape)
    assert channels_first(read_channels((scan[0], scan[0]))).shape == (2, *scan[1].shape)
    assert channels_first(read_image(scan[0])).shape == (1, *scan[1].shape)


def test_nearly_whole_labels_are_rounded_and_others_refused(tmp_path, phantoms):
    label = phantoms.phantom(1)[1].astype(np.float32)
    phantoms.write_volume(label * np.float32(1.0000001), tmp_path / "near.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(read_labels(tmp_path / "near.nii.gz")), label)
    phantoms.write_volume(label * np.float32(0.7), tmp_path / "far.nii.gz")
    with pytest.raises(BadInputError, match="whole numbers"):
        read_labels(tmp_path / "far.nii.gz")


@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR", "ALS"])
def test_turned_copies_become_the_same_canonical_scan(scan, code):
    straight = to_canonical(read_image(scan[0]))
    turned = sitk.DICOMOrient(read_image(scan[0]), code)
    assert volume.orientation_of(turned) == code
    assert np.array_equal(sitk.GetArrayFromImage(to_canonical(turned)), sitk.GetArrayFromImage(straight))


def test_a_write_that_fails_leaves_the_old_file(scan, tmp_path, monkeypatch):
    def cut(image, name, **_options):
        with open(name, "wb") as stream:
            stream.write(b"\x1f\x8b half")

    target = tmp_path / "mask.nii.gz"
    target.write_bytes(b"old")
    reference = read_image(scan[0])
    monkeypatch.setattr(sitk, "WriteImage", cut)
    with pytest.raises(ResourceError, match="disk full"):
        write_like(np.zeros(scan[1].shape, dtype=np.uint8), reference, target)
    assert target.read_bytes() == b"old"
    assert not list(tmp_path.glob(".tmp-*"))


def test_masks_with_many_labels_get_more_bytes():
    wide = [volume.label_dtype(largest) for largest in (254, 255, 65535, 65536)]
    assert wide == [np.uint8, np.uint16, np.uint16, np.uint32]


def test_a_plain_file_that_is_called_compressed_is_read_and_told(scan, caplog):
    expected = sitk.GetArrayFromImage(read_image(scan[0]))
    scan[0].write_bytes(gzip.decompress(scan[0].read_bytes()))
    assert np.array_equal(sitk.GetArrayFromImage(read_image(scan[0])), expected)
    assert "is not compressed, though its name says so" in caplog.text


def test_a_compressed_file_that_is_called_plain_is_told_by_its_right_name(scan):
    path = scan[0].with_name("plain.nii")
    scan[0].rename(path)
    with pytest.raises(BadInputError, match=r"rename it to plain\.nii\.gz"):
        read_image(path)


def test_nothing_is_written_under_a_name_that_is_no_utf_8(scan, tmp_path):
    with pytest.raises(BadInputError, match="the name is not UTF-8"):
        volume.write_image(read_image(scan[0]), tmp_path / "\udcff.nii.gz")
