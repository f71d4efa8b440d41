"""Tensor and array computations: no files, no printing, no environment."""
