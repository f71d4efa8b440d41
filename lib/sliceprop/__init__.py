"""Annotate a few slices of a 3D scan, get the volume.

    import sliceprop

    result = sliceprop.propagate("scan.nii.gz", "sparse.nii.gz")
    result.labels         # (i, j, k) int32 on the scan's grid
    result.report         # estimated quality, next slice to annotate

Five functions, each on files or on arrays `(i, j, k)`: `open_study`, `train`, `propagate`, `suggest`, `evaluate`.
Importing the package is cheap; they are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sliceprop.api import evaluate, open_study, propagate, suggest, train

__all__ = ["__version__", "evaluate", "open_study", "propagate", "suggest", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sliceprop import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
