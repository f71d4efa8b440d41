"""The MONAI Label app: translates requests, calls `sliceprop.study`, translates results and errors; no algorithm."""
