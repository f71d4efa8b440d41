"""Biomedisa's smart interpolation: random walks from the annotated slices, weighted by the image.

Its defaults. On a machine without a graphics card it runs on pocl, an OpenCL for CPUs, which has to be named to it.

Settings: `nbrw` (10, walks from each annotated voxel) and `sorw` (4000, steps of a walk).

References:
    Lösel et al.: Introducing Biomedisa as an open-source online platform for biomedical image segmentation, Nature
    Communications 11:5577, 2020, doi:10.1038/s41467-020-19303-w.
"""

from __future__ import annotations

import time

import numpy as np

PACKAGES = ("biomedisa", "pyopencl", "numpy")
SETTINGS = {"nbrw": 10, "sorw": 4000}
POCL = "opencl_Portable_CPU"
"""Kind, a word of the platform's name (Portable Computing Language), and sort of device."""


def fill(scan, labels, annotated, spacing, nbrw, sorw):
    """See `driver`. Annotated slices without any label say nothing to it."""
    if labels.max() > np.iinfo(np.uint8).max:
        raise SystemExit("cannot run: label values above 255")
    from biomedisa.interpolation import smart_interpolation

    platform = _platform()
    start = time.perf_counter()
    result = smart_interpolation(scan, labels.astype(np.uint8), platform=platform, nbrw=nbrw, sorw=sorw)
    seconds = time.perf_counter() - start
    if not result or "regular" not in result:
        raise SystemExit("cannot run: no OpenCL or CUDA device that it can use")
    measured = {"train_s": 0.0, "propagate_s": seconds, "device": platform or "chosen by biomedisa"}
    return np.asarray(result["regular"], dtype=np.int32), measured


def _platform():
    """pocl where there is no graphics card, else what it chooses itself."""
    import pyopencl

    kinds = {device.type for platform in pyopencl.get_platforms() for device in platform.get_devices()}
    return None if pyopencl.device_type.GPU in kinds else POCL
