"""DICOM series as other programs read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
)

from sliceprop.dicom import write_dicom_series
from sliceprop.dicom_series import check_series, describe_series, read_series
from sliceprop.errors import FileError, GeometryError, InputError, ShapeError
from sliceprop.io import Image, image_shape, read_image
from sliceprop.phantom import make_phantom


@pytest.fixture(scope="module")
def scan() -> Image:
    phantom = make_phantom(24, 4)
    return Image(phantom.image, phantom.affine)


def test_attributes_that_a_viewer_needs(tmp_path: Path, scan: Image) -> None:
    slices = [pydicom.dcmread(file) for file in write_dicom_series(tmp_path / "series", scan, name="thigh")]
    first = slices[0]
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == MRImageStorage
    assert (first.Modality, first.PatientID, first.Rows, first.Columns) == ("MR", "thigh", 24, 24)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({one.get(keyword) for one in slices}) == 1
    assert len({one.SOPInstanceUID for one in slices}) == 4
    assert [one.InstanceNumber for one in slices] == [1, 2, 3, 4]
    row, column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    np.testing.assert_allclose([row @ row, column @ column, row @ column], (1, 1, 0), atol=1e-6)
    np.testing.assert_array_equal(slices[2].pixel_array.T, scan.array[..., 2])
    positions = np.array([one.ImagePositionPatient for one in slices], float)
    np.testing.assert_allclose(np.linalg.norm(np.diff(positions, axis=0), axis=1), 30, atol=1e-6)
    np.testing.assert_allclose(positions[0] * (-1, -1, 1), scan.affine[:3, 3], atol=1e-6)


def test_the_same_scan_gets_the_same_uids(tmp_path: Path, scan: Image) -> None:
    other = Image(scan.array + 1, scan.affine)
    uids = [
        pydicom.dcmread(write_dicom_series(tmp_path / str(n), image)[0]).SOPInstanceUID
        for n, image in enumerate((scan, scan, other))
    ]
    assert uids[0] == uids[1] != uids[2]


@pytest.mark.parametrize("array", [np.linspace(-0.5, 70_000.25, 60), np.arange(60) * 3000 - 5], ids=["float", "wide"])
def test_values_that_do_not_fit_are_scaled(tmp_path: Path, array: np.ndarray) -> None:
    scan = Image(array.reshape(5, 4, 3), np.diag([1.0, 1.0, 2.0, 1.0]))
    write_dicom_series(tmp_path / "series", scan)
    back = np.sort(read_image(tmp_path / "series").array, axis=None)
    np.testing.assert_allclose(back, array, atol=np.ptp(array) / 32_767)


def test_folder_with_files_and_sheared_affine_are_refused(tmp_path: Path, scan: Image) -> None:
    write_dicom_series(tmp_path / "series", scan)
    with pytest.raises(FileError, match="not empty"):
        write_dicom_series(tmp_path / "series", scan)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(GeometryError, match="sheared"):
        write_dicom_series(tmp_path / "other", Image(scan.array, sheared))


STACK = Image(np.arange(6 * 5 * 8, dtype=np.int16).reshape(6, 5, 8), np.diag([-1.0, -1.0, 3.0, 1.0]))


def edited(folder: Path, edit: Callable[[pydicom.Dataset, int], object]) -> Path:
    """The series of `STACK`, each slice changed by `edit`."""
    for index, file in enumerate(write_dicom_series(folder / "series", STACK)):
        dataset = pydicom.dcmread(file)
        edit(dataset, index)
        dataset.save_as(file)
    return folder / "series"


def place(*position: float) -> Callable[[pydicom.Dataset], None]:
    return lambda dataset: setattr(dataset, "ImagePositionPatient", list(position))


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("affine", [STACK.affine, make_phantom(8, 2).affine])
def test_a_regular_stack_is_a_volume(tmp_path: Path, slice_axis: int, affine: np.ndarray) -> None:
    write_dicom_series(tmp_path / "series", Image(STACK.array, affine), slice_axis=slice_axis)
    check_series(read_series(tmp_path / "series"))


def test_places_that_are_rounded_a_little_are_fine(tmp_path: Path) -> None:
    check_series(read_series(edited(tmp_path, lambda one, k: place(0, 0, round(2.96 * k, 1))(one))))


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (lambda one, k: place(0, 0, 3 * (k + (k > 4)))(one), GeometryError, "missing: 6.0 mm .* slices 5 and 6"),
        (lambda one, k: place(0, 0, 3 * k + k * k / 5)(one), GeometryError, "unequally"),
        (lambda one, k: place(0, 0, 3 * (k % 4))(one), GeometryError, "4 of 8 .* time points"),
        (lambda one, k: place(0, 0, 0)(one), GeometryError, "8 of 8 .* time points"),
        (lambda one, k: place(0, k, 3 * k)(one), GeometryError, "gantry"),
        (
            lambda one, k: setattr(one, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1][:: -1 if k % 2 else 1]),
            GeometryError,
            "orientations",
        ),
        (lambda one, k: k == 3 and delattr(one, "ImagePositionPatient"), GeometryError, "without a place"),
        (lambda one, k: k == 3 and setattr(one, "Rows", 4), ShapeError, "sizes"),
        (lambda one, k: k == 3 and setattr(one, "PixelRepresentation", 0), ShapeError, "kinds"),
        (lambda one, k: k == 3 and setattr(one, "PixelSpacing", [1, 1.1]), GeometryError, "pixels"),
    ],
    ids=["gap", "unequal", "4D", "one place", "tilt", "localiser", "screenshot", "sizes", "kinds", "pixels"],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, edit: Callable[[pydicom.Dataset, int], object], error: type[InputError], match: str
) -> None:
    with pytest.raises(error, match=match):
        read_image(edited(tmp_path, edit))


def test_a_folder_without_a_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="0 DICOM series"):
        read_series(tmp_path)
    (tmp_path / "notes.txt").write_text("not DICOM, but long enough to look at" * 20)
    with pytest.raises(FileError, match="0 DICOM series"):
        read_series(tmp_path)


def test_a_scout_is_an_image_and_no_volume(tmp_path: Path) -> None:
    for file in write_dicom_series(tmp_path / "series", STACK)[1:]:
        file.unlink()
    assert read_image(tmp_path / "series").array.shape == (6, 5, 1)
    with pytest.raises(ShapeError, match="one slice"):
        check_series(read_series(tmp_path / "series"))


def test_what_else_lies_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    files = write_dicom_series(tmp_path / "series", STACK)
    (tmp_path / "series" / "notes.txt").write_text("of the last visit")
    (tmp_path / "series" / "deeper").mkdir()
    listing = pydicom.dcmread(files[0])
    listing.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    listing.save_as(tmp_path / "series" / "DICOMDIR")
    np.testing.assert_array_equal(read_image(tmp_path / "series").array, STACK.array)


def test_slices_without_any_place_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    def edit(one: pydicom.Dataset, k: int) -> None:
        del one.ImagePositionPatient, one.ImageOrientationPatient
        one.InstanceNumber = 20 - k

    folder = edited(tmp_path, edit)
    np.testing.assert_array_equal(read_image(folder).array, STACK.array[..., ::-1])
    with pytest.raises(GeometryError, match="without a place"):
        check_series(read_series(folder))


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda one, k: None)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[132:])
    np.testing.assert_array_equal(read_image(folder).array, STACK.array)
    assert image_shape(folder) == STACK.array.shape


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[:-10], "beyond the end"),
        (lambda content: content.replace(b"\x08\x00\x60\x00CS\x02\x00", b"\x08\x00\x60\x00CS\xff\xff", 1), "damaged"),
        (lambda content: content.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00Lg", 1), "unknown kind"),
        (lambda content: content.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00OB", 1), "damaged"),
        (lambda content: content.replace(b"\x20\x00\x0e\x00", b"\x20\x00\x0f\x00", 1), "SeriesInstanceUID"),
        (lambda content: content.replace(b"\x02\x00\x10\x00", b"\x02\x00\x11\x00", 1), "transfer syntax"),
    ],
    ids=["cut", "element", "kind", "rows", "series", "syntax"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], match: str) -> None:
    file = write_dicom_series(tmp_path / "series", STACK)[3]
    content = damage(file.read_bytes())
    assert content != file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(FileError, match=rf"{file.name}.*{match}"):
        read_image(tmp_path / "series")


def test_a_deflated_file_is_refused(tmp_path: Path) -> None:
    def edit(one: pydicom.Dataset, k: int) -> None:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with pytest.raises(FileError, match="deflated"):
        read_image(edited(tmp_path, edit))


def framed(folder: Path, heights: list[float]) -> Path:
    """A folder with one file, whose frames are the slices of `STACK` at these heights."""
    slices = [pydicom.dcmread(file) for file in write_dicom_series(folder / "slices", STACK)]
    header, frames = slices[0], []
    for height in heights:
        position, frame = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [*header.ImagePositionPatient[:2], height]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    orientation, measures, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = header.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = header.PixelSpacing, 3
    measures.SpacingBetweenSlices = 3
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    del header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    header.PerFrameFunctionalGroupsSequence, header.SharedFunctionalGroupsSequence = frames, [shared]
    header.NumberOfFrames = len(frames)
    header.PixelData = b"".join(one.PixelData for one in slices[: len(frames)])
    target = folder / "frames"
    target.mkdir()
    header.save_as(target / "all.dcm")
    return target


@pytest.mark.parametrize("down", [False, True])
def test_the_frames_of_one_file_are_slices(tmp_path: Path, down: bool) -> None:
    heights = [3.0 * k for k in range(8)]
    folder = framed(tmp_path, heights[::-1] if down else heights)
    check_series(read_series(folder))
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, STACK.array)
    for k, height in enumerate(heights[::-1] if down else heights):
        np.testing.assert_allclose((image.affine @ [0, 0, k, 1])[:3], [0, 0, height], atol=1e-4)
    assert image_shape(folder) == STACK.array.shape


@pytest.mark.parametrize(
    ("heights", "match"), [([0, 3, 6, 15], "missing"), ([0, 6, 3, 9], "order"), ([0, 3, 0, 3], "time points|order")]
)
def test_frames_that_are_no_stack_are_refused(tmp_path: Path, heights: list[float], match: str) -> None:
    with pytest.raises(GeometryError, match=match):
        read_series(framed(tmp_path, heights))


def test_frames_in_several_files_and_films_are_refused(tmp_path: Path) -> None:
    folder = framed(tmp_path, [0, 3, 6])
    other = pydicom.dcmread(folder / "all.dcm")
    other.save_as(folder / "more.dcm")
    with pytest.raises(ShapeError, match="several files"):
        read_series(folder)
    (folder / "more.dcm").unlink()
    del other.PerFrameFunctionalGroupsSequence
    other.save_as(folder / "all.dcm")
    with pytest.raises(GeometryError, match="film"):
        read_series(folder)


def test_slices_of_several_scales_keep_their_values(tmp_path: Path) -> None:
    """As in PET. The type that holds the first would wrap the others round."""
    slopes = [1, 1, 0.25, 1000, 1, 2, 1, 1]
    folder = edited(tmp_path, lambda one, k: setattr(one, "RescaleSlope", slopes[k]))
    np.testing.assert_allclose(read_image(folder).array, STACK.array * np.array(slopes))


def test_what_is_no_image_of_the_series_is_passed_over(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda one, k: None)
    report = pydicom.dcmread(next(folder.iterdir()))
    for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "BitsAllocated"):
        delattr(report, keyword)
    report.SeriesInstanceUID, report.Modality = report.SeriesInstanceUID + ".1", "RTSTRUCT"
    report.save_as(folder / "contours.dcm")
    np.testing.assert_array_equal(read_image(folder).array, STACK.array)


def test_a_damaged_file_without_preamble_is_not_left_out(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda one, k: None)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[132:])
    last = max(folder.iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(FileError, match=last.name):
        read_image(folder)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", [0, 0]),
        ("PixelSpacing", [1, -1]),
        ("PixelSpacing", ["1e308", "1e308"]),
        ("PixelSpacing", 1),
        ("ImagePositionPatient", ["1e300", 0, 0]),
    ],
)
def test_sizes_and_places_that_cannot_be_are_refused(tmp_path: Path, keyword: str, value: object) -> None:
    """GDCM reads pixels without a size as 1 mm."""
    with pytest.raises(FileError, match=r"its (pixels|place)|iterable"):
        read_image(edited(tmp_path, lambda one, k: setattr(one, keyword, value)))


@pytest.mark.parametrize("number", ["", "1\\2", "one"])
def test_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    def edit(one: pydicom.Dataset, k: int) -> None:
        one["InstanceNumber"] = RawDataElement(Tag("InstanceNumber"), "IS", 0, number.encode(), 0, False, True)

    folder = edited(tmp_path, edit)
    np.testing.assert_array_equal(read_image(folder).array, STACK.array)
    assert "InstanceNumbers" not in describe_series(read_series(folder))


@pytest.mark.parametrize("reach", [0, 2**31 - 16])
def test_a_part_of_compressed_voxels_that_reaches_beyond_the_file_is_refused(tmp_path: Path, reach: int) -> None:
    """GDCM would take that much memory."""
    folder, voxels = tmp_path / "series", np.arange(40 * 50 * 3, dtype=np.int16).reshape(40, 50, 3)
    for file in write_dicom_series(folder, Image(voxels, STACK.affine)):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    np.testing.assert_array_equal(read_image(folder).array, voxels)
    file = max(folder.iterdir())
    content = file.read_bytes()
    second = content.rindex(b"\xfe\xff\x00\xe0") + 4
    length = int.from_bytes(content[second : second + 4], "little")
    file.write_bytes(content[:second] + (reach or length + 20).to_bytes(4, "little") + content[second + 4 :])
    with pytest.raises(FileError, match="beyond the end"):
        read_image(folder)


@pytest.mark.parametrize(
    ("compressor", "marker", "sides"), [("JPEG2000", b"\xff\x51", (6, 10, 4)), ("JPEG", b"\xff\xc3", (5, 7, 2))]
)
@pytest.mark.parametrize("parts", [1, 2])
def test_compressed_voxels_that_are_more_than_the_header_says_are_refused(
    tmp_path: Path, compressor: str, marker: bytes, sides: tuple[int, int, int], parts: int
) -> None:
    """GDCM would take memory for as many as they say, which a few bytes may do."""
    folder, voxels = tmp_path / "series", np.arange(40 * 50 * 3, dtype=np.int16).reshape(40, 50, 3)
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(tmp_path / "one.dcm"))
    for file, plane in zip(write_dicom_series(folder, Image(voxels, STACK.affine)), voxels.T, strict=True):
        writer.Execute(sitk.GetImageFromArray(np.ascontiguousarray(plane)[None]))
        one, dataset = pydicom.dcmread(tmp_path / "one.dcm"), pydicom.dcmread(file)
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = one.PixelData, one.file_meta.TransferSyntaxUID
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(file)
    np.testing.assert_array_equal(read_image(folder).array, voxels)
    (stream,) = generate_pixel_data_frame(one.PixelData, 1)
    rows, columns, width = sides
    changed, at = bytearray(stream), stream.index(marker)
    for side in (rows, columns):
        changed[at + side : at + side + width] = (60_000).to_bytes(width)
    whole, cut = bytes(changed), (at + 5) // 2 * 2
    dataset.PixelData = encapsulate([whole]) if parts == 1 else encapsulate([whole[:cut], whole[cut:]], has_bot=False)
    dataset.save_as(file)
    with pytest.raises(FileError, match="more than the header says"):
        read_image(folder)


def sequence(content: bytes, ends: bool, times: int = 1) -> bytes:
    """A private sequence with as many equal items, which tells its length, or ends where a delimiter says so."""
    tag, item, no_length = b"\x09\x00\x10\x10SQ\x00\x00", b"\xfe\xff\x00\xe0", b"\xff" * 4
    if ends:
        items = (item + no_length + content + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00") * times
        return tag + no_length + items + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    items = (item + len(content).to_bytes(4, "little") + content) * times
    return tag + len(items).to_bytes(4, "little") + items


@pytest.mark.parametrize(
    ("kinds", "times", "match"),
    [
        ([False] * 10, 1, None),
        ([True] * 10, 1, None),
        ([True] * 6 + [False], 1, None),
        ([True, False] * 5, 1, None),
        ([True] * 8 + [False], 1, "too many"),
        ([True] * 2 + [False], 40, "too many"),
        ([True, False] * 8, 1, "too many"),
        ([False] * 40, 1, "too deep"),
        ([True] * 40, 1, "too deep"),
        ([True] * 20_000 + [False], 1, "recursion"),
        ([False], 200_001, "items"),
    ],
)
def test_sequences_too_deep_in_one_another_are_refused(
    tmp_path: Path, kinds: list[bool], times: int, match: str | None
) -> None:
    """GDCM would crash, or come to no end."""
    files = write_dicom_series(tmp_path / "series", STACK)
    nested = b""
    for ends in kinds:
        nested = sequence(nested, ends, times)
    content = files[3].read_bytes()
    patient = content.index(b"\x10\x00\x20\x00LO")
    files[3].write_bytes(content[:patient] + nested + content[patient:])
    if match is None:
        np.testing.assert_array_equal(read_image(tmp_path / "series").array, STACK.array)
        return
    with pytest.raises(FileError, match=match):
        read_image(tmp_path / "series")


def test_slices_are_counted_in_the_order_in_which_they_are_read(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda one, k: setattr(one, "InstanceNumber", 100 - k))
    told, image = describe_series(read_series(folder)), read_image(folder)
    files = [pydicom.dcmread(file) for file in folder.iterdir()]
    by_number = {int(one.InstanceNumber): one for one in files}
    for k, number in enumerate(told["InstanceNumbers"]):
        np.testing.assert_array_equal(by_number[number].pixel_array.T, image.array[..., k])
    assert (told["Modality"], told["PatientID"], told["StudyDate"]) == ("MR", "phantom", "20000101")


def test_missing_attributes_are_unknown(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda one, k: (delattr(one, "PatientID"), delattr(one, "InstanceNumber")))
    told = describe_series(read_series(folder))
    assert told["PatientID"] == "UNK" and "InstanceNumbers" not in told
