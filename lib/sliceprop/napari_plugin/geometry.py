"""Where the voxels of a layer lie in space.

napari shows the last two axes and slides along the first, so layers hold the axes of a file in reverse, `(k, j, i)`:
nothing is resampled, and the way back is exact. A layer that a reader of ours made carries the affine of its file in
its metadata; it is shown with its voxel size only, since napari cannot slice along oblique axes. Other layers are taken
as napari shows them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.io import Image, check_same_grid
from sliceprop.volume import check_affine, voxel_spacing

AFFINE = "affine_ras"
"""Key of a layer's metadata: `(4, 4)`, voxel index `(i, j, k)` of the file to RAS mm."""

Affine = NDArray[np.float64]


def layer_affine(layer: Any) -> Affine:
    """Voxel index in the layer's axis order to RAS mm; world coordinates of napari are taken as `(z, y, x)` in mm.

    Raises:
        GeometryError: singular or not finite.
    """
    if AFFINE in layer.metadata:
        return check_affine(layer.metadata[AFFINE], layer.name) @ _reversed(3)
    return _shown_affine(layer)


def _shown_affine(layer: Any) -> Affine:
    """The same as napari shows the layer."""
    corners = [layer.data_to_world(point) for point in np.vstack([np.zeros(3), np.eye(3)])]
    world = np.eye(4)
    world[:3, 3] = corners[0]
    world[:3, :3] = (np.array(corners[1:]) - corners[0]).T
    return check_affine(_reversed(3) @ world, layer.name)


def check_same_place(layer: Any, image: Any) -> None:
    """Refuse a layer whose voxels do not lie on those of an image: by their files, or else as napari shows them.

    Raises:
        ShapeError: other shape.
        GeometryError: elsewhere in space, as a mirrored copy is.
    """
    of_files = AFFINE in layer.metadata and AFFINE in image.metadata
    place = layer_affine if of_files else _shown_affine
    check_same_grid(Image(image.data, place(image)), Image(layer.data, place(layer)), layer.name)


def reversed_axes(affine: Affine) -> Affine:
    """From the axis order of layers to that of files, and back."""
    return affine @ _reversed(3)


def file_affine(layer: Any) -> Affine:
    """The same for the axis order `(i, j, k)` of files."""
    return reversed_axes(layer_affine(layer))


def file_image(layer: Any) -> Image:
    """A layer as files hold it."""
    return Image(np.asarray(layer.data).T, file_affine(layer))


def layer_placement(image: Image) -> dict[str, Any]:
    """Keyword arguments for a layer that shows `image.array.T`."""
    scale = voxel_spacing(image.affine)[::-1]
    return {"scale": scale, "metadata": {AFFINE: image.affine}, "axis_labels": ("k", "j", "i"), "units": ("mm",) * 3}


def same_placement(layer: Any) -> dict[str, Any]:
    """Keyword arguments for a layer on the grid of another one."""
    metadata = {AFFINE: layer.metadata[AFFINE]} if AFFINE in layer.metadata else {}
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    return {**{name: getattr(layer, name) for name in names}, "metadata": metadata}


def _reversed(n: int) -> Affine:
    """Reverses the first `n` of four homogeneous coordinates."""
    return np.eye(4)[[*range(n)[::-1], *range(n, 4)]]
