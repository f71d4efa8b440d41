"""LabelProp's own code (`deep-labelprop` on PyPI), called through its public function `train_and_infer`.

Replaced at run time, without touching what it computes: an import of torchvision that it does not use, a plot of the
fusion weights in the terminal (`plotext.cld`, which newer versions lack), a pause of 10 s after each propagation, 16
loader processes for one volume in memory, and the default device `cuda` where there is none.

It works on squares with sides that are multiples of 16 and resamples what it is given to them. Slices are padded to the
next such square instead, and cropped afterwards, which spares it the loss of resampling and most of the work that its
default side of 256 would be.

Setting: `max_epochs` (100, its default).
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import tempfile
import time
import types

import numpy as np

PACKAGES = ("deep-labelprop", "torch", "lightning", "monai", "numpy")
MULTIPLE = 16
SETTINGS = {"max_epochs": 100}


def fill(scan, labels, annotated, spacing, max_epochs):
    """See `driver`. All labels at once, along axis 0; labels are renumbered without gaps, as its classes have to be."""
    _, height, width = scan.shape
    side = -(-max(height, width) // MULTIPLE) * MULTIPLE
    square = (0, 0), (0, side - height), (0, side - width)
    values = np.unique(labels)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes checkpoints and logs where it runs
        entry, device = _prepared()
        seconds = _timed(entry, "train")
        start = time.perf_counter()
        *_, fused = entry.train_and_infer(
            np.pad(scan, square, constant_values=scan.min()),
            np.pad(np.searchsorted(values, labels).astype(np.uint8), square),
            None,
            side,
            max_epochs,
            z_axis=0,
            output_dir=folder,
            device=device,
        )
        total_s = time.perf_counter() - start
        os.chdir("/")
    measured = {"train_s": seconds["train"], "propagate_s": total_s - seconds["train"], "device": device}
    return values[fused[:, :height, :width]].astype(np.int32), measured


def _prepared():
    """Its module of entry points, ready to run here, and the device."""
    import kornia  # noqa: F401
    import lightning  # noqa: F401
    import monai.losses  # noqa: F401  all three before there is a stand-in that they could take for the real one
    import torch

    _stand_in_for_torchvision()
    from labelprop import DataLoading, napari_entry, utils

    if not getattr(sys.modules["torchvision"], "__file__", None):
        del sys.modules["torchvision"]
    utils.time = types.SimpleNamespace(sleep=_nothing)
    utils.plt = types.SimpleNamespace(cld=_nothing, plot=_nothing, show=_nothing)
    DataLoading.DataLoader = lambda data, size, **ignored: torch.utils.data.DataLoader(data, size)
    torch.manual_seed(0)
    return napari_entry, "cuda" if torch.cuda.is_available() else "cpu"


def _nothing(*args):
    pass


def _stand_in_for_torchvision():
    """An empty module under the name that it imports and does not use, unless the real one loads."""
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)


def _timed(module, name):
    """Let a function of a module note its seconds."""
    function, seconds = getattr(module, name), {}

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] = time.perf_counter() - start
        return result

    setattr(module, name, timed)
    return seconds
