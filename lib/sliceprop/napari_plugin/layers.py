"""Layers in and results out: which layers can be used, and the layers that show a propagation."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray

from sliceprop.config import MAX_LABEL
from sliceprop.errors import InputError, ShapeError
from sliceprop.napari_plugin.geometry import same_placement
from sliceprop.napari_plugin.label_names import copy_styles, names_of
from sliceprop.study import Propagation

TITLES = {
    "uncertainty": "uncertainty",
    "from_upper": "from upper",
    "from_lower": "from lower",
    "labels": "propagated",
}
"""What the layers of a propagation are called after the image's name, in the order in which they are added."""


def check_image_layer(layer: Any) -> None:
    """Refuse what is not one grey 3D volume.

    Raises:
        InputError: or a subclass, telling what to do.
    """
    if not isinstance(layer, Image):
        raise InputError("choose an image layer first")
    if layer.multiscale:
        raise InputError(f"{layer.name}: is a multiscale image; open one resolution of it as a layer of its own")
    if layer.rgb:
        raise InputError(f"{layer.name}: is a colour image; convert it to grey, or open one of its channels")
    if layer.ndim != 3:
        raise ShapeError(
            f"{layer.name}: has {layer.ndim} axes; give one 3D volume, for instance by Layer > Split Stack"
        )


def check_labels_layer(layer: Any, image: Image, what: str = "labels") -> None:
    """Refuse labels that do not lie on the image's voxels.

    Raises:
        InputError: or a subclass, telling what to do.
    """
    if not isinstance(layer, Labels):
        raise InputError(f"choose a {what} layer, or make one with New")
    if layer.multiscale:
        raise InputError(f"{layer.name}: is a multiscale layer; open one resolution of it as a layer of its own")
    if layer.data.shape != image.data.shape:
        raise ShapeError(
            f"{layer.name}: shape {layer.data.shape} differs from the image's {image.data.shape}; "
            "make a new layer with New, or resample it onto the image"
        )


def new_labels_layer(viewer: Any, image: Image, title: str) -> Labels:
    """An empty labels layer on the image's voxels, ready to be painted on one slice at a time."""
    check_image_layer(image)
    layer = viewer.add_labels(
        np.zeros(image.data.shape, np.uint16), name=f"{image.name} {title}", **same_placement(image)
    )
    layer.n_edit_dimensions = 2
    layer.brush_size = max(3, round(min(image.data.shape[-2:]) / 25))
    return layer


class ResultLayers:
    """The four layers that show the last propagation of an image; those that the user removes come back with the next.

    Args:
        viewer: to show them in.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layers: dict[str, Any] = {}

    def __getitem__(self, kind: str) -> Any:
        """The layer of a kind of `TITLES`, None while there is none."""
        layer = self._layers.get(kind)
        return layer if layer is not None and layer in self._viewer.layers else None

    def forget(self) -> None:
        """Leave the layers to the user; the next propagation gets new ones."""
        self._layers.clear()

    def remove(self) -> None:
        """Take the layers away."""
        for kind in TITLES:
            if (layer := self[kind]) is not None:
                self._viewer.layers.remove(layer)
        self.forget()

    def show(self, image: Image, annotation: Labels, result: Propagation) -> None:
        """Put a propagation into the layers, made where they are missing, without changing what is selected."""
        selected = set(self._viewer.layers.selection)
        active = self._viewer.layers.selection.active
        for kind in TITLES:
            array = getattr(result, kind)
            layer = self[kind]
            if layer is not None and layer.data.shape == array.shape:
                layer.data[...] = array
                layer.refresh()
            else:
                layer = self._layers[kind] = self._add(kind, image, annotation, array)
            if isinstance(layer, Labels) and names_of(layer) != names_of(annotation):
                copy_styles(annotation, layer)
        self._viewer.layers.selection = selected or self._viewer.layers.selection
        self._viewer.layers.selection.active = active

    def _add(self, kind: str, image: Image, annotation: Labels, array: NDArray[Any]) -> Any:
        name, place = f"{image.name} {TITLES[kind]}", same_placement(image)
        if kind == "uncertainty":
            layer: Any = Image(
                np.array(array, np.float32),
                name=name,
                colormap="magma",
                blending="additive",
                contrast_limits=(0, 1),
                visible=False,
                **place,
            )
        else:
            layer = Labels(as_labels(array), name=name, visible=kind == "labels", opacity=0.45, **place)
            layer.n_edit_dimensions = 2
            layer.brush_size = annotation.brush_size
            layer.selected_label = annotation.selected_label
            copy_styles(annotation, layer)
        self._viewer.layers.insert(self._below(annotation), layer)
        return layer

    def _below(self, annotation: Labels) -> int:
        """Place right below the annotation, so that what the user painted lies on top."""
        layers = self._viewer.layers
        return layers.index(annotation) if annotation in layers else len(layers)


def as_labels(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Label values as the layers of results hold them."""
    assert array.max(initial=0) <= MAX_LABEL
    return np.array(array, np.uint16)
