"""OME-Zarr (NGFF 0.4) in and out, a slice at a time: volumes that do not fit into memory.

An axis-aligned grid is all that this format knows: `(z, y, x)` with spacings and a translation in mm, no directions.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.errors import FileError, InputError, ShapeError
from sliceprop.io import UNFINISHED, Image, check_folder

VERSION = "0.4"
SUFFIX = ".zarr"

MM_PER_UNIT = {
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "nanometer": 1e-6,
    "centimeter": 10.0,
    "meter": 1000.0,
    None: 1.0,
}

CHUNK_PIXELS = 1024
"""Side of a chunk at most; a chunk is one slice deep."""

NUMBERS = "biuf"
"""Kinds of voxels, as numpy calls them; an array of objects may hold a program that runs when it is read."""

CODECS = frozenset(
    {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}
    | {"adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"}
    | {"astype", "bitround", "bytes", "delta", "endian", "fixedscaleoffset", "packbits", "quantize", "shuffle"}
    | {"sharding_indexed", "transpose"}
)
"""Ways of storing numbers, none of which makes anything else of what it reads, as `pickle` does."""

Steps = tuple[list[float], list[float]]
"""Scale and translation along every axis."""


@dataclass(frozen=True)
class ZarrVolume:
    """A volume on disk, slices along its first axis.

    Attributes:
        array: `(S, H, W)`, read where it is indexed.
        spacing: mm along the same axes.
        origin: mm of the first voxel's centre along the same axes.
    """

    array: Any
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(S, H, W)`."""
        s, h, w = self.array.shape
        return int(s), int(h), int(w)

    @property
    def image(self) -> Image:
        """The array, still on disk, and its place in space as `sliceprop.io` knows it."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return Image(self.array, affine)

    def slice(self, index: int) -> NDArray[Any]:
        """One slice, `(H, W)`.

        Raises:
            FileError: if it cannot be read.
        """
        try:
            return np.asarray(self.array[index])
        except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise FileError(f"slice {index} of an OME-Zarr volume cannot be read ({error})") from error


def open_zarr(path: Path) -> ZarrVolume:
    """Open the finest level of an OME-Zarr image or label image.

    Raises:
        FileError: missing, not OME-Zarr, or stored as something else than numbers.
        ShapeError: more than three axes longer than 1.
        InputError: the package zarr is not installed.
    """
    zarr = _zarr()
    if not path.is_dir():
        raise FileError(f"{path}: no such OME-Zarr folder")
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
        (scales, *_) = attributes.get("multiscales") or attributes["ome"]["multiscales"]
        level = scales["datasets"][0]
        array = group[level["path"]]
        _check_stored(array)
        inner = _steps(level["coordinateTransformations"], array.ndim)
        steps = _after(inner, _steps(scales.get("coordinateTransformations") or (), array.ndim))
        units = [axis.get("unit") for axis in scales["axes"]]
    except (AttributeError, KeyError, ValueError, TypeError, OSError, zarr.errors.BaseZarrError) as error:
        raise FileError(f"{path}: cannot be read as OME-Zarr ({error})") from error
    if (array.ndim > 3 and any(n > 1 for n in array.shape[:-3])) or array.ndim < 3:
        raise ShapeError(f"{path}: needs axes z, y, x, and found shape {array.shape}; give one 3D volume")
    mm = [MM_PER_UNIT.get(unit, 1.0) for unit in units[-3:]]
    spacing, origin = ([value * scale for value, scale in zip(each[-3:], mm, strict=True)] for each in steps)
    volume = _Last3(array) if array.ndim > 3 else array
    return ZarrVolume(volume, (spacing[0], spacing[1], spacing[2]), (origin[0], origin[1], origin[2]))


def check_new(path: Path) -> None:
    """Refuse a folder that `new_zarr` cannot write, before any long work.

    Raises:
        FileError: it is there already or no `.zarr`, or its folder is missing or read-only.
    """
    if path.exists() or not path.name.endswith(SUFFIX):
        raise FileError(
            f"{path}: {'is there already' if path.exists() else f'must end with {SUFFIX}'}; choose another name"
        )
    check_folder(path)


@contextmanager
def new_zarr(path: Path, like: ZarrVolume, dtype: str, *, name: str, label: bool = False) -> Iterator[Any]:
    """An array `(S, H, W)` to assign slices to; the folder appears whole at the end, or not at all.

    Args:
        path: `.zarr` folder that is not there yet.
        like: gives shape, spacing and origin.
        dtype: of the voxels on disk.
        name: of the image.
        label: mark it as label image.

    Raises:
        FileError: as for `check_new`, or its folder is full.
    """
    zarr = _zarr()
    check_new(path)
    try:
        made = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=UNFINISHED, suffix=SUFFIX))
    except OSError as error:
        raise FileError(f"{path}: cannot write ({error.strerror})") from error
    try:
        group = zarr.open_group(str(made), mode="w", zarr_format=2)
        group.attrs.update(_attributes(like, name, label))
        chunks = (1, min(CHUNK_PIXELS, like.shape[1]), min(CHUNK_PIXELS, like.shape[2]))
        nested = {"name": "v2", "separator": "/"}
        yield group.create_array("0", shape=like.shape, chunks=chunks, dtype=dtype, chunk_key_encoding=nested)
        made.chmod(0o755)
        made.rename(path)
    except OSError as error:
        raise FileError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_zarr(path: Path, array: NDArray[Any], like: ZarrVolume, *, name: str = "image", label: bool = False) -> None:
    """Write an array `(S, H, W)` that is in memory; see `new_zarr`."""
    with new_zarr(path, like, array.dtype.str, name=name, label=label) as made:
        for index, plane in enumerate(array):
            made[index] = plane


class _Last3:
    """The last three axes of an array whose other axes have one entry."""

    def __init__(self, array: Any) -> None:
        self._array, self.shape, self.dtype = array, array.shape[-3:], array.dtype

    def __getitem__(self, index: int) -> Any:
        return self._array[(*[0] * (self._array.ndim - 3), index)]


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("OME-Zarr needs the package zarr: pip install 'sliceprop[zarr]'") from error
    return zarr


def _check_stored(array: Any) -> None:
    """Refuse an array that holds anything but numbers, or is stored by a codec that is not known to give only those.

    Raises:
        ValueError: naming what it is.
    """
    about = array.metadata.to_dict()
    stored = [about.get("compressor"), *(about.get("filters") or ()), *(about.get("codecs") or ())]
    unknown = [name for name in map(str, _names(stored)) if name.removeprefix("numcodecs.") not in CODECS]
    if array.dtype.kind not in NUMBERS or unknown:
        raise ValueError(f"voxels of type {array.dtype} stored with {', '.join(unknown) or 'known codecs'}")


def _names(codecs: Iterable[Mapping[str, Any] | None]) -> Iterator[Any]:
    """Of codecs, and of those inside shards."""
    for codec in filter(None, codecs):
        yield codec.get("id", codec.get("name"))
        inside = codec.get("configuration") or {}
        yield from _names([*inside.get("codecs", ()), *inside.get("index_codecs", ())])


def _steps(transformations: Iterable[dict[str, Any]], ndim: int) -> Steps:
    """Scale and translation along every axis."""
    scale, translation = [1.0] * ndim, [0.0] * ndim
    for each in transformations:
        with suppress(KeyError):
            scale = [float(value) for value in each["scale"]]
        with suppress(KeyError):
            translation = [float(value) for value in each["translation"]]
    if len(scale) != ndim or len(translation) != ndim or min(scale) <= 0:
        raise ValueError("scale and translation need a positive number per axis")
    return scale, translation


def _after(inner: Steps, outer: Steps) -> Steps:
    """The inner scale and translation, then the outer ones, which NGFF has apply to all levels."""
    scale = [a * b for a, b in zip(inner[0], outer[0], strict=True)]
    return scale, [move * by + to for move, by, to in zip(inner[1], *outer, strict=True)]


def _attributes(like: ZarrVolume, name: str, label: bool) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    steps = [{"type": "scale", "scale": list(like.spacing)}, {"type": "translation", "translation": list(like.origin)}]
    scales = {"version": VERSION, "name": name, "axes": axes}
    found: dict[str, Any] = {
        "multiscales": [{**scales, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]
    }
    return found | ({"image-label": {"version": VERSION}} if label else {})
