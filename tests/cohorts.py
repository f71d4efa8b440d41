"""Studies on disk, as a cohort has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phantoms import moving_disc, only
from sliceprop.io import Image, write_image

AFFINE = np.diag([3.0, 1.0, 1.0, 1.0])


def write_study(
    folder: Path, *, seed: int = 0, affine: np.ndarray = AFFINE, axes: tuple[int, int, int] = (0, 1, 2)
) -> None:
    """`image.nii.gz` and `labels.nii.gz` with three annotated slices, the axes of the arrays in another order."""
    image, labels = moving_disc(seed=seed)
    folder.mkdir(parents=True)
    for name, array in (("image", image), ("labels", only(labels, [1, 5, 9]))):
        turned = array.transpose(axes)
        write_image(folder / f"{name}.nii.gz", turned, Image(turned, affine))
