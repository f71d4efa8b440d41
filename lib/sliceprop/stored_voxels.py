"""Where a file keeps its voxels, and whether they are whole: checked here, since the libraries that read them do not.

ITK takes what it gets of a compressed stream and leaves the rest of the array as it lies in memory; nibabel does not go
as far as the checksum at the end. Headers of NRRD and MetaImage can name any other file.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from sliceprop.errors import FileError

LONGEST_HEADER = 1 << 20
"""Bytes of the header of a NRRD or MetaImage file; more is none."""

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")

# None of these may look at a byte again for each one before it: whoever sends a file would choose how long they take.
_META_LAST = b"elementdatafile"
_META_END = re.compile(rb"(?:\A|\n)(?P<key>ElementDataFile)[ \t]*+=[ \t]*+(?P<file>[^\r\n]*+)\r?\n")
_META_COMPRESSED = re.compile(rb"CompressedData\s*[=:]\s*[Tt1]")
_META_SIZE = re.compile(rb"CompressedDataSize\s*[=:]\s*+0*+(\d{0,18})")
_META_SKIPS = re.compile(rb"HeaderSize\s*[=:]\s*+(?!0(?:\s|\Z))")
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_NRRD_FILE = re.compile(rb"^[^\S\n]*+data\s*file\s*:\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_NRRD_COMPRESSED = re.compile(rb"^[^\S\n]*+encoding\s*:\s*gz", re.IGNORECASE | re.MULTILINE)
_NRRD_SKIPS = re.compile(rb"^[^\S\n]*+(line|byte)\s*skip\s*:", re.IGNORECASE | re.MULTILINE)
_NRRD_LONG = re.compile(rb"(?:\A|[\r\n])([^\r\n]{401,}+)")
"""Its reader copies a line that it complains of into 1,024 bytes, with words around it and some twice."""
_CHUNK = 1 << 20
_ANY_HEAD = 47
"""For zlib: 32 KiB of window, and either of its heads or that of gzip."""


def read_head(file: Path) -> bytes:
    """The first bytes of a file, with its header.

    Raises:
        FileError: if it cannot be read.
    """
    try:
        with file.open("rb") as content:
            return content.read(LONGEST_HEADER)
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from error


def meta_end(head: bytes) -> re.Match[bytes] | None:
    """The last line of a MetaImage's header; None if it has none.

    ITK ends at the first line that it takes for this one: no other may look like it.
    """
    end = _META_END.search(head)
    return end if end and head.lower().find(_META_LAST) == end.start("key") else None


def _voxels_in(end: re.Match[bytes]) -> bytes:
    """The name of the file of voxels in the last line of a header."""
    return end["file"].rstrip(b" \t")


def is_one_file(name: str, head: bytes) -> bool:
    """Whether a NRRD or MetaImage holds its voxels itself, in its header's words; other formats always do.

    Args:
        name: of the file.
        head: its first `LONGEST_HEADER` bytes.
    """
    ending = name.lower()
    if ending.endswith(META_SUFFIXES):
        end = meta_end(head)
        return end is not None and _voxels_in(end) == b"LOCAL"
    if ending.endswith(NRRD_SUFFIXES):
        end = _NRRD_END.search(head)
        header = head[: end.start()] if end else b""
        # Its reader ends lines at every carriage return, the pattern at every line feed.
        return bool(end) and not re.search(rb"\r(?!\n)", header) and not _NRRD_FILE.search(header)
    return True


def check_lines(file: Path) -> None:
    """Refuse a NRRD with lines that would make its reader write outside of its memory, and crash.

    Comments, pairs of keys and values, and the content may be of any length: it never complains of these.

    Raises:
        FileError: also if the file cannot be opened.
    """
    head = read_head(file)
    end = _NRRD_END.search(head)
    endless = end is None and len(head) == LONGEST_HEADER
    if endless or any(not _is_text(line) for line in _NRRD_LONG.findall(head[: end.start()] if end else head)):
        raise FileError(f"{file}: cannot be read, its header does not end, or has lines that are too long")


def _is_text(line: bytes) -> bool:
    return line.startswith((b"#", b"content: ")) or b":=" in line.split(b": ", 1)[0]


def check_gzip(file: Path, size: int) -> None:
    """Refuse a compressed file that does not match the checksum at its end, or holds much more; others pass.

    Args:
        file: compressed if its name says so.
        size: bytes up to its last voxel.

    Raises:
        FileError: if it is damaged.
    """
    if file.suffix != ".gz":
        return
    try:
        with gzip.open(file) as content:
            while content.read(_CHUNK):
                if content.tell() > size + _CHUNK:
                    raise FileError(f"{file}: holds more than its header says; write it anew with its voxels alone")
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{file}: cannot be read, it may be truncated or damaged ({error})") from error


def check_compressed(file: Path, size: int) -> None:
    """Refuse a NRRD or MetaImage whose compressed voxels do not match their checksum, or are not as many.

    Args:
        file: its header can be read.
        size: bytes of its voxels.

    Raises:
        FileError: if they are damaged, or lie where they cannot be checked.
    """
    head = read_head(file)
    place = _compressed_nrrd(file, head) if file.name.endswith(NRRD_SUFFIXES) else _compressed_meta(file, head)
    if place is None:
        return
    source, start, longest = place
    try:
        found, consumed = _inflated(source, start, size)
    except (OSError, zlib.error) as error:
        raise FileError(f"{file}: cannot be read, it may be truncated ({error})") from error
    if found != size or consumed > longest:
        raise FileError(f"{file}: cannot be read, its compressed voxels are not as many as its header says")


def _compressed_nrrd(file: Path, head: bytes) -> tuple[Path, int, float] | None:
    """File, first byte and most bytes of a compressed stream; None for voxels that are not compressed by gzip."""
    end = _NRRD_END.search(head)
    header = head[: end.start()] if end else head
    if not _NRRD_COMPRESSED.search(header) or _NRRD_SKIPS.search(header):
        return None  # skipped bytes are counted before or after: its reader does check the stream's length
    elsewhere = _NRRD_FILE.search(header)
    if elsewhere:
        source = file.parent / elsewhere[1].strip().decode("utf-8", "replace")
        return (source, 0, float("inf")) if source.is_file() else None
    return (file, end.end(), float("inf")) if end else None


def _compressed_meta(file: Path, head: bytes) -> tuple[Path, int, float] | None:
    """As `_compressed_nrrd`.

    Raises:
        FileError: if the stream lies where it cannot be checked.
    """
    end = meta_end(head)
    header = head[: end.start()] if end else head
    if not _META_COMPRESSED.search(header):
        return None
    place = _meta_place(file, end) if end else None
    if place is None or _META_SKIPS.search(header):
        raise FileError(f"{file}: cannot be read, its compressed voxels are in several files or after skipped bytes")
    sizes = [int(given) for given in _META_SIZE.findall(header) if given]
    return *place, min(sizes, default=float("inf"))


def _meta_place(file: Path, end: re.Match[bytes]) -> tuple[Path, int] | None:
    """The one file that holds the voxels of a MetaImage, and the first byte of them; None if there are several."""
    if _voxels_in(end) == b"LOCAL":
        return file, end.end()
    elsewhere = file.parent / _voxels_in(end).decode("utf-8", "replace")
    return (elsewhere, 0) if elsewhere.is_file() else None


def _inflated(file: Path, start: int, most: int) -> tuple[int, int]:
    """Bytes that a stream holds and takes; one more than `most` where it holds more.

    Raises:
        OSError, zlib.error: if it cannot be read, is cut off or damaged.
    """
    stream, found, consumed = zlib.decompressobj(_ANY_HEAD), 0, 0
    with file.open("rb") as content:
        content.seek(start)
        while not stream.eof:
            chunk = stream.unconsumed_tail or content.read(_CHUNK)
            part = stream.decompress(chunk, _CHUNK)
            if not chunk and not part:
                raise zlib.error("the stream is cut off")
            found += len(part)
            consumed += len(chunk) - len(stream.unconsumed_tail) - len(stream.unused_data)
            if found > most:
                return most + 1, consumed
    return found, consumed
