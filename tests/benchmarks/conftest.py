"""Small data sets on disk, as the layouts have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phantoms import moving_disc
from sliceprop.io import Image, write_image

Write = Callable[[Path, np.ndarray], None]


@pytest.fixture
def write() -> Write:
    """Writes a volume `(i, j, k)` of 2 mm voxels along RAS, folders included."""

    def write(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, array, Image(array, np.diag([2.0, 2.0, 2.0, 1.0])))

    return write


@pytest.fixture
def measuring(tmp_path: Path, write: Write) -> Path:
    """A folder with the volume `phantom`: discs 1 and 7 that run along axis 2."""
    image, labels = (np.moveaxis(array, 0, 2) for array in moving_disc())
    folder = tmp_path / "data" / "phantom"
    write(folder / "image.nii.gz", image)
    write(folder / "label.nii.gz", labels)
    meta = {"recommended_labels": [7, 1], "propagation_axis": 2}
    (folder / "meta.json").write_text(json.dumps(meta))
    return tmp_path / "data"
