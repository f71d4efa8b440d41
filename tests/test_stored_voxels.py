"""Files that were damaged, or whose headers name other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sliceprop.errors import FileError
from sliceprop.io import Image, read_image, write_image
from sliceprop.segments import read_segments
from sliceprop.stored_voxels import LONGEST_HEADER, is_one_file

VOXELS = np.random.default_rng(0).integers(0, 300, (9, 8, 7)).astype(np.int16)
NAMES = ["a.nii.gz", "a.nrrd", "a.mha"]


def written(file: Path, compress: bool = True) -> Path:
    write_image(file, VOXELS, Image(VOXELS, np.eye(4)), compress=compress)
    return file


def voxels_begin(content: bytes, name: str) -> int:
    """The first byte after the header."""
    return {"a.nii.gz": 10, "a.nrrd": content.find(b"\n\n") + 2, "a.mha": content.find(b"LOCAL\n") + 6}[name]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_whole_files_are_read(tmp_path: Path, name: str, compress: bool) -> None:
    np.testing.assert_array_equal(read_image(written(tmp_path / name, compress)).array, VOXELS)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_of_compressed_voxels_is_noticed(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / name)
    good = file.read_bytes()
    begin = voxels_begin(good, name)
    for place in np.linspace(begin + 2, len(good) - 12, 40).astype(int):
        file.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(FileError):
            read_image(file)


@pytest.mark.parametrize("keep", [9, -1])
@pytest.mark.parametrize("name", NAMES)
def test_compressed_voxels_that_are_cut_off_are_noticed(tmp_path: Path, name: str, keep: int) -> None:
    file = written(tmp_path / name)
    good = file.read_bytes()
    file.write_bytes(good[: voxels_begin(good, name) + keep] if keep > 0 else good[:keep])
    with pytest.raises(FileError):
        read_image(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.replace(b"CompressedDataSize = ", b"CompressedDataSize = 9\nX = "),
        lambda head: head.replace(b"DimSize = 9 8 7", b"DimSize = 9 8 9"),
        lambda head: head.replace(b"DimSize = 9 8 7", b"DimSize = 9 8 5"),
        lambda head: head.replace(b"NDims = 3", b"NDims = 3\nHeaderSize = 40"),
        lambda head: head.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = LIST"),
    ],
)
def test_headers_that_hide_voxels_that_are_missing(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """ITK would read each, and leave voxels as they lie in memory, or take bytes of elsewhere."""
    file = written(tmp_path / "a.mha")
    content = change(file.read_bytes())
    assert content != file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(FileError):
        read_image(file)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
@pytest.mark.parametrize("damaged", [False, True])
def test_compressed_voxels_in_a_file_of_their_own(tmp_path: Path, name: str, damaged: bool) -> None:
    file = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(file), True)
    (other,) = (one for one in tmp_path.iterdir() if one != file)
    assert not is_one_file(name, file.read_bytes())
    if not damaged:
        np.testing.assert_array_equal(read_image(file).array, VOXELS)
        return
    good = other.read_bytes()
    other.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(FileError):
        read_image(file)


def test_a_damaged_checksum_of_a_label_of_zeros(tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((50, 50, 50), np.uint8), np.eye(4)), file)
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match="damaged"):
        read_image(file)


META = b"ObjectType = Image\nNDims = 3\n%s\nElementDataFile = LOCAL\n"
NRRD = b"NRRD0004\ntype: uchar\n%s\n\n"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.mha", META % b"ElementDataFile = /etc/passwd"),
        ("a.mha", META % b" ElementDataFile = /etc/passwd"),
        ("a.mha", META % b"ElementDataFile : /etc/passwd"),
        ("a.mha", META % b"ElementDataFile=/etc/passwd"),
        ("a.mha", META % b"ElementDataFile = LIST\n/etc/passwd"),
        ("a.mha", META % b"Comment = x\rElementDataFile = /etc/passwd"),
        ("a.MHD", b"NDims = 3\nElementDataFile = /etc/passwd\n"),
        ("a.mha", b"NDims = 3\n"),
        ("a.nrrd", NRRD % b"data file: /etc/passwd"),
        ("a.nhdr", NRRD % b"DataFile: /etc/passwd"),
        ("a.nrrd", NRRD % b"space origin: (0,0,0)\rdata file: /etc/passwd"),
        ("a.nrrd", NRRD % b" data  file : LIST"),
        ("a.nrrd", NRRD % b"\r data file: /etc/passwd"),
        ("a.nrrd", b"NRRD0004\ntype: uchar\n"),
    ],
)
def test_headers_that_name_other_files(name: str, head: bytes) -> None:
    assert not is_one_file(name, head)


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \n", b"\n", b"\r\n", b"\r", b"\f"])
@pytest.mark.parametrize(
    "word", [b"ElementDataFile", b"ElementDataFile =", b"CompressedData", b"HeaderSize =", b"data"]
)
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_headers_of_blanks_end_the_search(tmp_path: Path, name: str, word: bytes, blank: bytes) -> None:
    """A search that tries each blank anew does not come back from a header of this length."""
    first = b"NRRD0004\n" if name == "a.nrrd" else b"CompressedData = True\n"
    head = (first + word + blank * LONGEST_HEADER)[:LONGEST_HEADER]
    file = tmp_path / name
    file.write_bytes(head)
    assert is_one_file(name, head + b"x") == (name == "a.nrrd" and blank in (b"\n", b"\r\n"))
    with pytest.raises(FileError):
        read_image(file)


@pytest.mark.parametrize("line", ["sizes: %s", "data file: %s", "kinds: a:=%s", "%s", "x: %s:="])
def test_lines_that_would_crash_itk_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.nrrd"
    file.write_bytes(NRRD % (line % ("x" * 5_000)).encode())
    for read in (read_image, read_segments):
        with pytest.raises(FileError, match="too long"):
            read(file)
    file.write_bytes((NRRD % b"sizes: 1 1 1").strip() + b"\n" + b"a:=b\n" * LONGEST_HEADER)
    with pytest.raises(FileError, match="does not end"):
        read_image(file)


@pytest.mark.parametrize("line", ["content: %s", "# %s", "key:=%s", 'labels:=[{"name": "%s"}]'])
def test_text_in_headers_may_be_long(tmp_path: Path, line: str) -> None:
    file = written(tmp_path / "a.nrrd")
    head, voxels = file.read_bytes().split(b"\n\n", 1)
    file.write_bytes(head + b"\n" + (line % ("x" * 50_000)).encode() + b"\n\n" + voxels)
    np.testing.assert_array_equal(read_image(file).array, VOXELS)


@pytest.mark.parametrize("line", [b"HeaderSize = 0", b"HeaderSize : 0 ", b"CompressedDataSize = " + b"0" * 9_999])
def test_headers_that_skip_nothing(tmp_path: Path, line: bytes) -> None:
    file = written(tmp_path / "a.mha")
    file.write_bytes(file.read_bytes().replace(b"NDims = 3\n", b"NDims = 3\n" + line + b"\n"))
    np.testing.assert_array_equal(read_image(file).array, VOXELS)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_what_this_package_writes_is_one_file(tmp_path: Path, name: str) -> None:
    assert is_one_file(name, written(tmp_path / name).read_bytes())
