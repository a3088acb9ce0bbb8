# SPDX-License-Identifier: Apache-2.0
"""95 % intervals of scores: Wilson's, and the same with questions about one video counted as one cluster."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson(score: float, n: float) -> tuple[float, float]:
    """Bound a share with Wilson's 95 % interval (Wilson, 1927).

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Args:
        score: the share p, in [0, 1].
        n: the number of items, or an effective number of them.

    Returns:
        The two bounds, in [0, 1]; (0, 1) without items.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 6), round(high, 6)
    (0.403832, 0.596168)
    """
    if n <= 0:
        return 0.0, 1.0
    middle = score + Z**2 / (2 * n)
    spread = Z * math.sqrt(max(score * (1 - score), 0.0) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def effective_size(scores: ArrayLike, weights: ArrayLike, means: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Count the independent yes-or-no items that would give a weighted mean the same variance.

        n_eff = p(1 − p) / Var,    Var = C/(C−1) · Σ_c (Σ_{i∈c} w_i (x_i − m_i))²

    The sum over clusters is the cluster-robust variance; with a cluster for each item it is the ordinary one. For
    shares of equal weights and clusters of one item n_eff is n − 1, so callers pass n there instead.

    Args:
        scores: scores of the items, x, in [0, 1]. Shape: (n,).
        weights: weights of the items, w, which sum to 1. Shape: (n,).
        means: mean score of each item's group, m. Shape: (n,).
        clusters: the cluster of each item, n of them.

    Returns:
        n_eff; never more than the number of items when the clusters are larger than one item, so that intervals of
        clusters without visible spread stay as wide as Wilson's [ours].
    """
    x, w, m = (np.asarray(values, dtype=np.float64) for values in (scores, weights, means))
    n = len(x)
    if n == 0:
        return 0.0
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    count = len(numbers)
    sums = np.bincount(index, weights=w * (x - m), minlength=count)
    variance = float((sums**2).sum()) * count / max(count - 1, 1)
    p = float((w * x).sum())
    if variance <= 0 or not 0 < p < 1:
        return float(count if count < n else n)
    return p * (1 - p) / variance
