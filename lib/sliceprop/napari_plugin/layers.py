"""Layers in and results out: which layers can be used, and the layers that show a propagation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray

from sliceprop.config import MAX_LABEL
from sliceprop.errors import InputError, ShapeError
from sliceprop.napari_plugin.backend import Result
from sliceprop.napari_plugin.geometry import check_same_place, same_placement
from sliceprop.napari_plugin.label_names import copy_styles, names_of, shared_styles

TITLES = {
    "labels": "propagated",
    "from_lower": "from lower",
    "from_upper": "from upper",
    "uncertainty": "uncertainty",
}
"""What the layers of a propagation are called after the image's name, from top to bottom."""


STUDY, SERVER = "study", "server"
"""Keys of a layer's metadata: the id of its study, and the address of the server that has it."""


def study_of(layer: Any) -> tuple[str, str]:
    """Server and id of the study that a layer belongs to; both empty for none."""
    return str(layer.metadata.get(SERVER, "")), str(layer.metadata.get(STUDY, ""))


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
    if not isinstance(layer.data, np.ndarray):
        raise InputError(f"{layer.name}: is not in memory; duplicate it, or make a new layer with New")
    if layer.data.shape != image.data.shape:
        raise ShapeError(
            f"{layer.name}: shape {layer.data.shape} differs from the image's {image.data.shape}; "
            "make a new layer with New, or resample it onto the image"
        )
    check_same_place(layer, image)
    server, study = study_of(layer)
    if study and STUDY in image.metadata and study_of(image) != (server, study):
        raise InputError(f"{layer.name}: belongs to the study {study} of {server}; choose layers of one study")


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
        later: does something once the viewer has had a turn.
        added: called when there is a new layer.
    """

    def __init__(
        self, viewer: Any, later: Callable[[Callable[[], None]], None], added: Callable[[], None] = lambda: None
    ) -> None:
        self._viewer, self._later, self._added = viewer, later, added
        self._layers: dict[str, Any] = {}
        self._coming: Result | None = None

    def __getitem__(self, kind: str) -> Any:
        """The layer of a kind of `TITLES`, None while there is none."""
        layer = self._layers.get(kind)
        return layer if layer is not None and layer in self._viewer.layers else None

    @property
    def complete(self) -> bool:
        """Whether all layers show the last result."""
        return self._coming is None

    def forget(self) -> None:
        """Leave the layers to the user; the next propagation gets new ones."""
        self._layers.clear()
        self._coming = None

    def remove(self) -> None:
        """Take the layers away."""
        for kind in TITLES:
            if (layer := self[kind]) is not None:
                self._viewer.layers.remove(layer)
        self.forget()

    def show(self, image: Image, annotation: Labels, result: Result) -> None:
        """Put a propagation into the layers, made where they are missing, without changing what is selected.

        Labels that have a layer show at once; the other layers follow one by one, so that the viewer is never held up
        for long: napari needs a tenth of a second or more to make one.
        """
        self._coming, kinds = result, list(TITLES)
        if self["labels"] is not None:
            self._put(kinds.pop(0), image, annotation, result.labels)
        self._later(lambda: self._show(image, annotation, result, kinds))

    def _show(self, image: Image, annotation: Labels, result: Result, kinds: list[str]) -> None:
        """Show the first of some kinds, and have the others follow; not those of a result that is replaced by now."""
        if self._coming is not result:
            return
        if not kinds or image not in self._viewer.layers:
            self._coming = None
            return
        selected, active = set(self._viewer.layers.selection), self._viewer.layers.selection.active
        self._put(kinds[0], image, annotation, getattr(result, kinds[0]))
        self._viewer.layers.selection = selected or self._viewer.layers.selection
        self._viewer.layers.selection.active = active
        self._later(lambda: self._show(image, annotation, result, kinds[1:]))

    def _put(self, kind: str, image: Image, annotation: Labels, array: NDArray[Any]) -> None:
        layer = self[kind]
        if layer is not None and layer.data.shape == array.shape:
            layer.data[...] = array
            layer.refresh()
        else:
            layer = self._layers[kind] = self._add(kind, image, annotation, array)
            self._added()
        if isinstance(layer, Labels) and names_of(layer) != names_of(annotation):
            copy_styles(annotation, layer)

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
            options = {**place, **shared_styles(annotation, place["metadata"])}
            layer = Labels(as_labels(array), name=name, visible=kind == "labels", opacity=0.45, **options)
            layer.n_edit_dimensions = 2
            layer.brush_size = annotation.brush_size
            layer.selected_label = annotation.selected_label
        self._viewer.layers.insert(self._below(annotation), layer)
        return layer

    def _below(self, annotation: Labels) -> int:
        """Place below the annotation and the results that are there: what the user painted lies on top."""
        layers = self._viewer.layers
        above = [layers.index(layer) for layer in (annotation, *self._layers.values()) if layer in layers]
        return min(above, default=len(layers))


def as_labels(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Label values as the layers of results hold them."""
    assert array.max(initial=0) <= MAX_LABEL
    return np.array(array, np.uint16)
