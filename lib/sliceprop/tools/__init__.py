"""Semi-automatic tools that need no learning: seeds, thresholds, contours, six points, or a bundle in; labels out.

Pure functions on arrays `(i, j, k)` and their affine. What they return is an ordinary segmentation, a draft that the
user corrects; nothing here counts as annotation by itself.
"""
