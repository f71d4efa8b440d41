"""Groups of alike slices, and the same number of slices from each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 15
"""As in Payer et al. 2023."""

STARTS = 10
"""Runs of k-means from different random centres, of which the best is kept."""


@dataclass(frozen=True)
class Clusters:
    """Slices in groups.

    Attributes:
        members: cluster of each slice, `(S,)`; every cluster has a slice.
        centres: mean description of each cluster, `(k, D)`.
    """

    members: NDArray[np.int64]
    centres: NDArray[np.float64]


def cluster(profiles: NDArray[Any], k: int, rng: np.random.Generator) -> Clusters:
    """k-means on descriptions of slices.

    Since it looks at distances alone, it works on coordinates within the span of the descriptions, which are as many as
    there are slices: `X = (Q R)^T`, and rows of `R^T` are as far from each other as those of `X`.

    Args:
        profiles: `(S, D)`, one description per slice.
        k: clusters; there are fewer where fewer descriptions differ.
        rng: of the first centres.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    triangle: NDArray[Any] = np.asarray(np.linalg.qr(profiles.T, mode="r"))
    coordinates = triangle.T.astype(np.float64)
    seed = int(rng.integers(2**32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal slices: fewer clusters than asked for
        fitted = KMeans(min(k, len(profiles)), n_init=STARTS, random_state=seed).fit(coordinates)
    present, members = np.unique(fitted.labels_, return_inverse=True)
    return Clusters(members, fitted.cluster_centers_[present])


def draw_evenly(clusters: Clusters, n: int, rng: np.random.Generator) -> list[int]:
    """Draw `n` slices, the same number from each cluster, without replacement.

    What does not divide evenly goes to the largest clusters, one slice each. A cluster that is too small gives all it
    has; the rest is drawn from the cluster with the nearest centre among those that have slices left after their own
    share.

    Args:
        clusters: with at least `n` slices in all.
        n: how many.
        rng: of the draw.
    """
    k = len(clusters.centres)
    stocks = [rng.permutation(np.flatnonzero(clusters.members == c)).tolist() for c in range(k)]
    by_size = sorted(range(k), key=lambda c: -len(stocks[c]))
    quotas = {c: n // k + (rank < n % k) for rank, c in enumerate(by_size)}
    missing = {c: max(0, quota - len(stocks[c])) for c, quota in quotas.items()}
    chosen = [stocks[c].pop() for c, quota in quotas.items() for _ in range(quota - missing[c])]
    for c, short in missing.items():
        distance = np.linalg.norm(clusters.centres - clusters.centres[c], axis=1)
        lent = [s for lender in np.argsort(distance, kind="stable") for s in stocks[lender]][:short]
        stocks = [[s for s in stock if s not in lent] for stock in stocks]
        chosen += lent
    return chosen
