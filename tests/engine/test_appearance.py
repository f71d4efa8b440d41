"""Appearance learnt from annotated slices of images whose labels can be told by looking."""

import numpy as np
import torch

from sliceprop.engine.appearance import Appearance, image_features
from sliceprop.engine.propagation import Carrier
from sliceprop.labels import sparse_labels

SIZE = 48


def bright_discs() -> tuple[np.ndarray, np.ndarray]:
    """Two discs of different brightness that wander in opposite directions; `(S, H, W)` image and labels."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((7, SIZE, SIZE), np.int32)
    for s in range(7):
        labels[s][(rows - 14) ** 2 + (columns - 12 - 2 * s) ** 2 < 49] = 4
        labels[s][(rows - 34) ** 2 + (columns - 34 + 2 * s) ** 2 < 49] = 9
    noise = np.random.default_rng(0).normal(0, 0.02, labels.shape)
    return np.select([labels == 4, labels == 9], [0.8, 0.5], 0.2).astype(np.float32) + noise.astype(np.float32), labels


def appearance(image: np.ndarray, sparse: np.ndarray, **options: object) -> Appearance:
    annotation = sparse_labels(sparse, **options)  # type: ignore[arg-type]
    return Appearance(Carrier(annotation, torch.from_numpy(image)[:, None], None))


def only(labels: np.ndarray, slices: list[int]) -> np.ndarray:
    sparse = np.zeros_like(labels)
    sparse[slices] = labels[slices]
    return sparse


def test_labels_are_told_by_brightness_where_they_have_moved() -> None:
    image, labels = bright_discs()
    found = appearance(image, only(labels, [0, 6])).probabilities(3, np.ones((SIZE, SIZE), bool))
    assert found.shape == (3, SIZE * SIZE)
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)
    named = np.array([0, 4, 9])[found.argmax(axis=0)].reshape(SIZE, SIZE)
    assert (named != labels[3]).mean() < 0.02


def test_only_the_pixels_asked_for_are_answered_in_their_order() -> None:
    image, labels = bright_discs()
    asked = appearance(image, only(labels, [0, 6]))
    everything = asked.probabilities(2, np.ones((SIZE, SIZE), bool))
    pixels = np.random.default_rng(1).random((SIZE, SIZE)) < 0.1
    assert np.allclose(asked.probabilities(2, pixels), everything[:, pixels.ravel()])
    assert asked.probabilities(2, np.zeros((SIZE, SIZE), bool)).shape == (3, 0)


def test_what_was_not_annotated_teaches_nothing() -> None:
    """Label 9 is known on slice 6 only; its pixels on slice 0 must not count as background."""
    image, labels = bright_discs()
    sparse = only(labels, [0, 6])
    sparse[0][sparse[0] == 9] = 0
    found = appearance(image, sparse, partial=True).probabilities(1, labels[1] == 9)
    assert (found[2] > 0.5).mean() > 0.9


def test_scribbles_do_not_teach() -> None:
    """They mark what is unusual: on ten scans results got worse where they taught."""
    image, labels = bright_discs()
    marks = np.zeros_like(labels)
    marks[3, 24, 2:10] = marks[3, 20:28, 6] = 255
    pixels = np.ones((SIZE, SIZE), bool)
    without = appearance(image, only(labels, [0, 6])).probabilities(3, pixels)
    assert np.array_equal(appearance(image, only(labels, [0, 6]), scribbles=marks).probabilities(3, pixels), without)


def test_the_same_study_gives_the_same_answer() -> None:
    image, labels = bright_discs()
    first, second = (appearance(image, only(labels, [1, 5])).probabilities(3, labels[3] > 0) for _ in range(2))
    assert np.array_equal(first, second)


def test_features_look_at_what_lies_around() -> None:
    plane = np.zeros((32, 32), np.float32)
    plane[:, 20:] = 1
    features = image_features(plane)
    assert features.shape[1:] == plane.shape
    far_from_edge, next_to_it = features[:, 16, 3], features[:, 16, 12]
    assert np.allclose(far_from_edge, 0, atol=1e-3)
    assert next_to_it.max() > 0.5
