"""Small studies with a known answer: a textured disc that moves and grows along the slices."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

N_SLICES, HEIGHT, WIDTH = 11, 48, 60


def moving_disc(
    *, n_slices: int = N_SLICES, shift_px: float = 1.5, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Image `(S, H, W)` and labels: disc 1 drifts by `shift_px` a slice to the right, disc 7 stays and shrinks."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), 2.0)
    texture /= np.abs(texture).max()
    image, labels = [], []
    for s in range(n_slices):
        drift = shift_px * s
        moved = ndimage.shift(texture, (0, drift), order=1, mode="wrap")
        disc = (rows - 16) ** 2 + (columns - 14 - drift) ** 2 < 9**2
        other = (rows - 36) ** 2 + (columns - 30) ** 2 < (8 - 0.3 * s) ** 2
        image.append(0.3 * moved + 1.0 * disc + 0.6 * other + 0.02 * rng.normal(size=disc.shape))
        labels.append(np.where(disc, 1, np.where(other, 7, 0)))
    return np.stack(image).astype(np.float32), np.stack(labels).astype(np.int32)


def only(labels: NDArray[np.int32], slices: list[int]) -> NDArray[np.int32]:
    """The labels of some slices, nothing elsewhere."""
    sparse = np.zeros_like(labels)
    sparse[slices] = labels[slices]
    return sparse


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Overlap of two masks."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
