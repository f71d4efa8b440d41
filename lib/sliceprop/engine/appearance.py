"""What the labels of a study look like: randomised trees over local image features and position.

The trees learn from what was annotated on this study alone and tell how likely each pixel of another slice is to belong
to each label. Alone they are worse than carried labels, which know where things are; beside them they say what a
border looks like where carried labels are slightly off, or where a structure changes between annotated slices.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.engine.interpolation import sources
from sliceprop.engine.propagation import Carrier
from sliceprop.labels import LabelArray

TREES = 20

LEAST_LEAF = 2
"""Pixels in a leaf."""

FEATURE_SHARE = 0.5
"""Share of the features tried at every split: more than is usual, for only few of them matter at any one border."""

PIXELS = 12_000
"""Pixels that the trees learn from at most, the same number of each annotated slice."""

REACH_PX = 8
"""Only pixels this close to a border teach: nobody asks about others, and fewer, nearer ones teach more."""

NEAR_PX, WIDE_PX = 4, 9
"""How far from a pixel its surroundings are looked at: along both axes, near also along the diagonals."""

Features = NDArray[np.float32]
Pixels = NDArray[np.bool_]


class Appearance:
    """Randomised trees of one study, asked for label probabilities.

    References:
        Geurts, Ernst, Wehenkel: Extremely randomized trees, Machine Learning 63, 2006, doi:10.1007/s10994-006-6226-1.
    """

    def __init__(self, carrier: Carrier, *, seed: int = 0, threads: int = 1) -> None:
        """Learn from the annotated slices; scribbles mark what is unusual, and teaching them made results worse.

        Args:
            carrier: images and annotation, and the motion that says where a pixel lies on the annotated slices.
            seed: of the trees.
            threads: that share the trees while they learn.
        """
        from sklearn.ensemble import ExtraTreesClassifier

        self._carrier = carrier
        self._values = np.array((0, *carrier.annotation.values))
        random = np.random.default_rng(seed)
        lessons = [self._lesson(s, random) for s in self._taught_slices]
        forest = ExtraTreesClassifier(
            TREES, min_samples_leaf=LEAST_LEAF, max_features=FEATURE_SHARE, random_state=seed, n_jobs=threads
        )
        forest.fit(*(np.concatenate(part) for part in zip(*lessons, strict=True)))
        self._columns = np.searchsorted(self._values, forest.classes_)
        self._trees = forest.estimators_

    def probabilities(self, index: int, pixels: Pixels) -> NDArray[np.float32]:
        """Probability of background and of each label at some pixels of slice `index`, `(K + 1, n)`.

        Args:
            index: the slice.
            pixels: `(H, W)`, `n` of them True.
        """
        found = np.zeros((len(self._values), int(pixels.sum())), np.float32)
        if found.shape[1]:
            # The forest's own predict_proba starts new threads for every slice, which takes longer than the answer.
            described = self._described(index, pixels)
            answers = (tree.predict_proba(described, check_input=False) for tree in self._trees)
            found[self._columns] = sum(answers).T / len(self._trees)
        return found

    @property
    def _pixels_per_slice(self) -> int:
        return PIXELS // len(self._taught_slices)

    @cached_property
    def _taught_slices(self) -> list[int]:
        return [int(s) for s in np.flatnonzero(self._carrier.annotation.known.any(axis=0))]

    def _lesson(self, s: int, random: np.random.Generator) -> tuple[Features, NDArray[np.int32]]:
        """Described pixels of a slice and what they are."""
        annotation = self._carrier.annotation
        painted = annotation.labels[s]
        near = _near_border(painted) if painted.any() else np.full(painted.shape, annotation.known[:, s].any())
        near &= (painted > 0) | ~self._may_hold_others(s)
        chosen = np.flatnonzero(near)
        if chosen.size > self._pixels_per_slice:
            chosen = np.sort(random.choice(chosen, self._pixels_per_slice, replace=False))
        pixels = np.zeros(painted.shape, bool)
        pixels.flat[chosen] = True
        return self._described(s, pixels), painted[pixels]

    def _may_hold_others(self, s: int) -> Pixels:
        """Where a label that is not known on slice `s` could be: near its place on the slices where it is known."""
        annotation = self._carrier.annotation
        places = np.zeros(annotation.labels.shape[1:], bool)
        for k in np.flatnonzero(~annotation.known[:, s]):
            for source in (side[k, s] for side in self._sources):
                if source >= 0:
                    places |= annotation.labels[source] == annotation.values[k]
        return _grown(places, REACH_PX) if places.any() else places

    def _described(self, index: int, pixels: Pixels) -> Features:
        """Features of the image and position of some pixels, `(n, F)`; diagonals let a tree cut at an angle."""
        features = image_features(self._carrier.images[index, 0].numpy())[:, pixels]
        row, column = self._position(index, pixels)
        where = np.stack([row, column, row + column, row - column])
        described: Features = np.ascontiguousarray(np.concatenate([features, where]).T, np.float32)
        return described

    def _position(self, index: int, pixels: Pixels) -> NDArray[np.float64]:
        """Rows and columns where the pixels lie on the nearest annotated slices, weighed by nearness, `(2, n)`."""
        position: NDArray[np.float64] = np.stack(np.nonzero(pixels)).astype(np.float64)
        transforms, annotated = self._carrier.transforms, self._carrier.annotation.annotated_slices
        sides = [*[s for s in annotated if s <= index][-1:], *[s for s in annotated if s >= index][:1]]
        if transforms is None or not sides or index in sides:
            return position
        weights = [1.0] if len(sides) == 1 else [(sides[1] - index), (index - sides[0])]
        for source, weight in zip(sides, weights, strict=True):
            disp = transforms.between(source, index)[0].numpy()
            position += weight / sum(weights) * disp[:, pixels]
        return position

    @cached_property
    def _sources(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return sources(self._carrier.annotation.known)


def image_features(plane: NDArray[np.float32]) -> Features:
    """Local features of every pixel of a slice, `(F, H, W)`.

    Intensity at four scales, edges at two, texture, blobs, and what lies around.

    Args:
        plane: `(H, W)` in [0, 1].
    """
    near, wide = ndimage.gaussian_filter(plane, 1.0), ndimage.gaussian_filter(plane, 2.0)
    mean = ndimage.uniform_filter(plane, 5)
    texture = np.sqrt(np.maximum(ndimage.uniform_filter(plane * plane, 5) - mean * mean, 0))
    edges = [ndimage.gaussian_gradient_magnitude(plane, sigma) for sigma in (1.0, 2.0)]
    coarse, blobs = ndimage.gaussian_filter(plane, 4.0), ndimage.gaussian_laplace(plane, 2.0)
    by, across = NEAR_PX, NEAR_PX - 1
    around = [(by, 0), (-by, 0), (0, by), (0, -by)]
    diagonal = [(across, across), (across, -across), (-across, across), (-across, -across)]
    far = [(WIDE_PX, 0), (-WIDE_PX, 0), (0, WIDE_PX), (0, -WIDE_PX)]
    surroundings = [*_shifted(near, [*around, *diagonal]), *_shifted(wide, far)]
    return np.stack([plane, near, wide, coarse, *edges, texture, blobs, *surroundings])


def _shifted(plane: NDArray[np.float32], offsets: list[tuple[int, int]]) -> list[NDArray[np.float32]]:
    """What lies so many rows and columns further; the border is held."""
    (height, width), padded = plane.shape, np.pad(plane, WIDE_PX, mode="edge")
    return [
        padded[WIDE_PX + rows : WIDE_PX + rows + height, WIDE_PX + columns : WIDE_PX + columns + width]
        for rows, columns in offsets
    ]


def _near_border(labels: LabelArray) -> Pixels:
    """Pixels near those whose neighbours differ."""
    return _grown(ndimage.morphological_gradient(labels, size=3) > 0, REACH_PX)


def _grown(mask: Pixels, by_px: int) -> Pixels:
    near: Pixels = ndimage.distance_transform_edt(~mask) <= by_px
    return near
