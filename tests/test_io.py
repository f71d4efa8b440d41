"""Files in and out, against geometry that is known."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless

from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError, GeometryError, ShapeError, TooLargeError
from sliceprop.io import (
    Image,
    check_folder,
    check_same_grid,
    check_writable,
    image_shape,
    make_folder,
    read_image,
    write_atomically,
    write_image,
)

SHAPE = (5, 6, 7)
ORIENTATIONS = [(order, flips) for order in permutations(range(3)) for flips in product((1, -1), repeat=3)]
FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha")


def orientation(order: tuple[int, ...], flips: tuple[int, ...]) -> np.ndarray:
    """The affine of a volume whose axis `n` runs along RAS axis `order[n]`, forwards or backwards."""
    affine = np.zeros((4, 4))
    for axis, (target, flip, spacing) in enumerate(zip(order, flips, (0.8, 1.5, 4.0), strict=True)):
        affine[target, axis] = flip * spacing
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def oblique() -> np.ndarray:
    """Tilted about two axes, right-handed, at right angles."""
    a, b = np.deg2rad(17), np.deg2rad(-31)
    first = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    second = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = second @ first @ np.diag((0.8, 1.5, 4.0))
    affine[:3, 3] = (-11.25, 40.5, 3.125)
    return affine


def image(affine: np.ndarray | None = None) -> Image:
    """Every voxel has a value of its own, so that any mix-up of axes shows."""
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return Image(array, oblique() if affine is None else affine)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_every_axis_order_and_direction_comes_back(tmp_path: Path, suffix: str, order: tuple, flips: tuple) -> None:
    original = image(orientation(order, flips))
    write_image(tmp_path / f"scan{suffix}", original.array, original)
    back = read_image(tmp_path / f"scan{suffix}")
    np.testing.assert_array_equal(back.array, original.array)
    np.testing.assert_allclose(back.affine, original.affine, atol=1e-5)


@pytest.mark.parametrize("suffix", FORMATS)
def test_oblique_affine_comes_back(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"scan{suffix}", image().array, image())
    np.testing.assert_allclose(read_image(tmp_path / f"scan{suffix}").affine, oblique(), atol=1e-5)


def test_all_formats_place_a_voxel_at_the_same_point(tmp_path: Path) -> None:
    """Against SimpleITK's own idea of space, which is LPS."""
    voxel = (3, 1, 5)
    expected = (oblique() @ [*voxel, 1])[:3] * (-1, -1, 1)
    for suffix in FORMATS:
        write_image(tmp_path / f"scan{suffix}", image().array, image())
        read = sitk.ReadImage(str(tmp_path / f"scan{suffix}"))
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(voxel), expected, atol=1e-4)
        assert read[voxel] == image().array[voxel]


@pytest.mark.parametrize("slice_axis", range(3))
def test_dicom_series_comes_back_at_its_place(tmp_path: Path, slice_axis: int) -> None:
    """A reader may order and flip axes as it likes; each value must stay at its point."""
    write_dicom_series(tmp_path / "series", image(), slice_axis=slice_axis)
    back = read_image(tmp_path / "series")
    indices = np.argwhere(np.ones(back.array.shape, bool))
    points = indices @ back.affine[:3, :3].T + back.affine[:3, 3]
    original = np.rint((points - oblique()[:3, 3]) @ np.linalg.inv(oblique()[:3, :3]).T).astype(int)
    np.testing.assert_array_equal(back.array.ravel(), image().array[tuple(original.T)])


def test_result_keeps_the_header_of_the_scan(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(np.ones(SHAPE, np.int16), oblique())
    scan.set_qform(oblique(), "scanner")
    scan.set_sform(oblique(), "mni")
    scan.header.set_xyzt_units("mm", "sec")
    scan.header["scl_slope"], scan.header["scl_inter"], scan.header["cal_max"] = 2, 1, 500
    nib.save(scan, tmp_path / "scan.nii.gz")
    like = read_image(tmp_path / "scan.nii.gz")
    write_image(tmp_path / "labels.nii.gz", np.full(SHAPE, 7, np.int32), like)
    header = nib.load(tmp_path / "labels.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(read_image(tmp_path / "labels.nii.gz").array, 7)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "highest", "stored"),
    [(np.int32, 255, np.uint8), (np.int32, 65_535, np.uint16), (np.float64, 0.3, np.float32), (np.int16, -9, np.int16)],
)
def test_types_on_disk(tmp_path: Path, suffix: str, dtype: type, highest: float, stored: type) -> None:
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3] = highest
    write_image(tmp_path / f"out{suffix}", array, image())
    back = read_image(tmp_path / f"out{suffix}").array
    assert back.dtype == stored
    np.testing.assert_array_equal(back, array.astype(stored))


def test_scaled_nifti_is_read_with_its_scale(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(np.full(SHAPE, 3, np.int16), np.eye(4))
    scan.header.set_slope_inter(0.5, -1)
    nib.save(scan, tmp_path / "scan.nii")
    stored = nib.load(tmp_path / "scan.nii").get_fdata()
    np.testing.assert_allclose(read_image(tmp_path / "scan.nii").array, stored)


def test_a_trailing_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 1), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    assert read_image(tmp_path / "scan.nii.gz").array.shape == SHAPE


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2)])
def test_not_3d_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.raises(ShapeError, match="3 axes"):
        read_image(tmp_path / "scan.nii.gz")


def test_a_connectome_is_refused(tmp_path: Path) -> None:
    """CIFTI-2 has the ending and the header of NIfTI-2."""
    axes = nib.cifti2.ScalarAxis(["a", "b"]), nib.cifti2.BrainModelAxis.from_mask(np.ones((3, 3, 3)), affine=np.eye(4))
    nib.Cifti2Image(np.zeros((2, 27)), nib.Cifti2Header.from_axes(axes)).to_filename(tmp_path / "a.dscalar.nii")
    with pytest.raises(ShapeError, match="3 axes"):
        read_image(tmp_path / "a.dscalar.nii")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_several_values_per_voxel_are_refused_by_the_header(tmp_path: Path, name: str) -> None:
    """There are no voxels to read."""
    sitk.WriteImage(sitk.Image((4, 4, 4), sitk.sitkVectorFloat64, 7), str(tmp_path / name))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: -4 * 4 * 4 * 7 * 8])
    with pytest.raises(ShapeError, match="7 values per voxel"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("size", [7, 8, -1, 2**31 - 1])
def test_extensions_of_nifti_are_passed_over(tmp_path: Path, kind: type, order: str, size: int) -> None:
    """Whatever size they claim, which nibabel would read."""
    scan = kind(image().array, oblique(), kind.header_class(endianness=order))
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 24))
    nib.save(scan, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    begin = kind.header_class.sizeof_hdr + 4
    assert content[begin : begin + 4] == np.array(32, f"{order}i4").tobytes()
    content[begin : begin + 4] = np.array(size, f"{order}i4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array, image().array)
    assert image_shape(tmp_path / "a.nii") == SHAPE


@pytest.mark.parametrize("begin", [1e30, np.inf, np.nan, -1e30])
def test_voxels_far_behind_their_header_are_refused(tmp_path: Path, begin: float) -> None:
    header = nib.Nifti1Image(image().array, oblique()).header
    header["vox_offset"] = begin
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\1\0\0\0" + bytes(4000)))
    with pytest.raises(FileError, match="cannot be read"):
        read_image(tmp_path / "a.nii.gz")
    assert image_shape(tmp_path / "a.nii.gz") is None


def test_a_shape_is_known_without_voxels(tmp_path: Path) -> None:
    header = nib.Nifti1Image(np.zeros((*SHAPE, 1), np.int16), np.eye(4)).header
    header["vox_offset"] = 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock)
    assert image_shape(tmp_path / "a.nii") == SHAPE
    header.set_data_shape((20_000, 20_000, 20_000, 1))
    (tmp_path / "a.nii").write_bytes(header.binaryblock)
    with pytest.raises(TooLargeError):
        read_image(tmp_path / "a.nii")


def test_a_file_that_holds_more_than_its_voxels_is_refused(tmp_path: Path) -> None:
    """Which each reader would unpack again; a few bytes behind them are no harm."""
    write_image(tmp_path / "a.nii.gz", image().array, image())
    voxels = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(voxels + gzip.compress(bytes(1000)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, image().array)
    (tmp_path / "a.nii.gz").write_bytes(voxels + gzip.compress(bytes(4 << 20)))
    with pytest.raises(FileError, match="holds more"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    whole = Image(rng.integers(0, 1000, (20, 20, 20)).astype(np.int16), np.eye(4))
    file = tmp_path / f"scan{suffix}"
    write_image(file, whole.array, whole)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FileError, match=r"scan.*cannot be read"):
        read_image(file)


@pytest.mark.parametrize("name", ["missing.nii.gz", "text.nii.gz", "text.nrrd", "text.txt", "empty_folder"])
def test_what_is_no_scan_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    for text in ("text.nii.gz", "text.nrrd", "text.txt"):
        (tmp_path / text).write_text("this is no scan")
    with pytest.raises(FileError, match=name):
        read_image(tmp_path / name)


@pytest.mark.parametrize("line", ["NDims = 9999999999993", "NDims = -13", "NDims =-1 3", "NDims = 3\nNDims = 99", ""])
def test_a_number_of_axes_that_would_crash_itk_is_refused(tmp_path: Path, line: str) -> None:
    good = tmp_path / "good.mha"
    write_image(good, np.zeros(SHAPE, np.int16), Image(np.zeros(SHAPE), np.eye(4)), dtype="int16")
    assert b"NDims = 3\n" in good.read_bytes() and image_shape(good) == SHAPE
    bad = tmp_path / "bad.mha"
    bad.write_bytes(good.read_bytes().replace(b"NDims = 3", line.encode()))
    with pytest.raises(FileError, match="how many axes"):
        read_image(bad)
    assert image_shape(bad) is None


def test_folder_with_two_series_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for file in write_dicom_series(tmp_path / name, image(), name=name):
            file.rename(tmp_path / file.name)
    with pytest.raises(FileError, match="2 DICOM series"):
        read_image(tmp_path)


def test_singular_affine_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header["sform_code"], header["srow_x"], header["srow_y"] = 1, (1, 0, 0, 0), (0, 1, 0, 0)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), None, header), tmp_path / "scan.nii.gz")
    with pytest.raises(GeometryError, match="singular"):
        read_image(tmp_path / "scan.nii.gz")


def test_same_grid_allows_rounding_and_refuses_a_shift() -> None:
    scan = image()
    check_same_grid(scan, Image(scan.array, scan.affine + 1e-4), "labels")
    shifted = scan.affine.copy()
    shifted[0, 3] += 1
    with pytest.raises(GeometryError, match=r"labels.*1\.00 mm"):
        check_same_grid(scan, Image(scan.array, shifted), "labels")
    with pytest.raises(ShapeError, match="labels"):
        check_same_grid(scan, Image(scan.array[1:], scan.affine), "labels")


@pytest.mark.parametrize("name", ["missing/out.nii.gz", "out.png", "out.mhd", "out", "folder.nii.gz"])
def test_output_that_cannot_be_written_is_found_early(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(FileError):
        check_writable(tmp_path / name)


def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")

    def fill(file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="No space left"):
        write_atomically(tmp_path / "out.bin", fill)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.bin", b"old")]


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """In the kernel's own folder, where even root cannot write, and in one that is not there."""
    with pytest.raises(FileError, match="cannot write"):
        write_atomically("/proc/out.nii.gz", lambda file: file.write_bytes(b""))
    with pytest.raises(FileError, match="no such folder"):
        check_folder(tmp_path / "missing" / "report.json")
    with pytest.raises(FileError, match="cannot make"):
        make_folder("/proc/series")


def test_a_huge_volume_is_refused_from_its_header_with_an_estimate(tmp_path: Path) -> None:
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).header
    header.set_data_shape((20_000, 20_000, 20_000))
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(400))
    with pytest.raises(TooLargeError, match="GiB"):
        read_image(tmp_path / "huge.nii")


def test_a_series_of_huge_slices_is_refused_from_a_header(tmp_path: Path) -> None:
    for file in write_dicom_series(tmp_path, Image(np.zeros(SHAPE, np.int16), np.eye(4))):
        header = pydicom.dcmread(file)
        header.Rows = header.Columns = 65_535
        header.save_as(file)
    with pytest.raises(FileError, match="beyond the end"):
        read_image(tmp_path)
    for file in tmp_path.iterdir():  # compressed, they might hold as much
        header = pydicom.dcmread(file)
        header.Rows = header.Columns = 8
        header.compress(RLELossless, np.zeros((8, 8), np.int16))
        header.Rows = header.Columns = 65_535
        header.save_as(file)
    with pytest.raises(TooLargeError, match="GiB"):
        read_image(tmp_path)
