"""Surfaces of labels as files: STL, one per label, and OBJ with its materials, all labels in one.

Points are in millimetres, LPS, and the files say so the way 3D Slicer reads it. A surface is the border of the voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from sliceprop.io import LPS_TO_RAS, write_atomically
from sliceprop.segments import Segment

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("points", "<f4", (3, 3)), ("attribute", "<u2")])


class Surface(NamedTuple):
    """Triangles around a label, counter-clockwise as seen from outside.

    Attributes:
        points: `(P, 3)`, LPS mm.
        triangles: `(T, 3)`, indices into `points`.
    """

    points: NDArray[np.float64]
    triangles: NDArray[np.int64]


def surface(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Surface:
    """The border of a mask that is not empty.

    Args:
        mask: `(i, j, k)`.
        affine: `(4, 4)` voxel index to RAS mm.
    """
    hit = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first = np.array([found[0] for found in hit])
    cropped = mask[tuple(slice(found[0], found[-1] + 1) for found in hit)]
    voxels, triangles, _, _ = marching_cubes(np.pad(cropped, 1).astype(np.float32), 0.5)
    to_lps = LPS_TO_RAS @ affine  # its own inverse
    points = (voxels + first - 1) @ to_lps[:3, :3].T + to_lps[:3, 3]
    inwards = np.linalg.det(to_lps[:3, :3]) > 0  # `marching_cubes` counts axes the other way round
    return Surface(points, (triangles[:, ::-1] if inwards else triangles).astype(np.int64))


def write_stl(path: Path, shape: Surface, segment: Segment) -> None:
    """Write a binary STL; its header holds value, colour and name, cut to 80 bytes.

    Raises:
        FileError: if the file cannot be written.
    """
    corners = shape.points[shape.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    content = np.zeros(len(corners), _TRIANGLE)
    content["points"] = corners
    content["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    text = f"SPACE=LPS label={segment.value} color={segment.color} name={segment.name}"
    header = text.encode()[:80].decode(errors="ignore").encode().ljust(80)
    data = header + np.uint32(len(corners)).tobytes() + content.tobytes()
    write_atomically(path, lambda file: file.write_bytes(data))


def write_obj(path: Path, shapes: Mapping[Segment, Surface]) -> None:
    """Write an OBJ with one object per label, and beside it its materials (`.mtl`) with the colours.

    Raises:
        FileError: if a file cannot be written.
    """
    materials = path.with_suffix(".mtl")
    write_atomically(materials, lambda file: file.write_text("".join(map(_material, shapes)), encoding="utf-8"))
    lines, before = ["# SPACE=LPS", f"mtllib {materials.name}"], 1
    for segment, shape in shapes.items():
        lines += [f"o {segment.name}", f"usemtl label_{segment.value}"]
        lines += _rows("v %.4f %.4f %.4f", shape.points) + _rows("f %d %d %d", shape.triangles + before)
        before += len(shape.points)
    write_atomically(path, lambda file: file.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _material(segment: Segment) -> str:
    red, green, blue = (part / 255 for part in segment.rgb)
    return f"newmtl label_{segment.value}\nKd {red:.6f} {green:.6f} {blue:.6f}\n"


def _rows(form: str, table: NDArray[Any]) -> list[str]:
    return [form % tuple(row) for row in table.tolist()]
