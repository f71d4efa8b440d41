"""Scans with a known answer: two balls of their own intensity, in millimetres, on any grid."""

from __future__ import annotations

import numpy as np

SHAPE = (40, 36, 14)
SPACING = (1.0, 1.0, 3.0)
CENTRES, RADII = {1: (12.0, 18.0, 21.0), 2: (28.0, 17.0, 20.0)}, {1: 7.0, 2: 6.0}
GREY = {0: 0.0, 1: 100.0, 2: 200.0}

TURN = np.linalg.qr(np.array([[0.8, 0.5, 0.1], [-0.4, 0.9, 0.3], [0.2, -0.2, 1.0]]))[0]
STRAIGHT = np.diag([*SPACING, 1.0])
OBLIQUE = np.block([[TURN @ np.diag(SPACING), np.array([[5.0], [-7], [9]])], [np.zeros((1, 3)), np.ones((1, 1))]])
SHEARED = STRAIGHT.copy()
SHEARED[1, 2] = 1.0


def millimetres() -> np.ndarray:
    return np.stack(
        np.meshgrid(*(np.arange(n) * mm for n, mm in zip(SHAPE, SPACING, strict=True)), indexing="ij"), axis=-1
    )


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    for label, centre in CENTRES.items():
        labels[np.linalg.norm(millimetres() - centre, axis=-1) < RADII[label]] = label
    return labels


def scan(noise: float = 5.0) -> np.ndarray:
    grey = np.vectorize(GREY.get)(truth())
    return (grey + np.random.default_rng(0).normal(0, noise, SHAPE)).astype(np.float32)


def seeds(background: bool = True) -> np.ndarray:
    """A small cross in each ball, and a frame of background in the middle slice."""
    marks = np.zeros(SHAPE, np.int32)
    marks[9:15, 18, 7], marks[25:31, 17, 7] = 1, 2
    if background:
        marks[2:38, 2, 7] = marks[2:38, 33, 7] = -1
        marks[20, 2:33, 7] = -1
        marks[4:36, 4:32, 1] = marks[4:36, 4:32, 13] = -1
    return marks


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
