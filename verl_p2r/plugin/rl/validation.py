# SPDX-License-Identifier: Apache-2.0
"""verl's bootstrap over the answers to one validation item, without its loop.

With `actor_rollout_ref.rollout.val_kwargs.n` above 1, `verl.trainer.ppo.metric_utils.bootstrap_metric` of verl 0.9.1
calls `np.max` and `np.min` a thousand times each for every item, variable and number of answers. The reward manager
`p2r` returns nearly twenty variables, and the GPUs wait meanwhile. No registry or config key reaches that function, so
this module replaces it. Remove this file when verl's function has no loop.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from verl.trainer.ppo import metric_utils

verls_bootstrap = metric_utils.bootstrap_metric


@functools.lru_cache(maxsize=64)
def _drawn(count: int, subset_size: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """Indices that verl draws: it seeds numpy in every call."""
    return np.random.RandomState(seed).choice(count, size=(n_bootstrap, subset_size), replace=True)


def bootstrap_metric(
    data: list[Any],
    subset_size: int,
    reduce_fns: list[Callable[[np.ndarray], float]],
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> list[tuple[float, float]]:
    """Estimate mean and standard deviation of the best and the worst of some answers, as verl does, to the last bit.

    Args:
        data: one value for each answer to an item.
        subset_size: number of answers to draw, with replacement.
        reduce_fns: `np.max` and `np.min`. With any other function, and for values that are not finite numbers, verl's
            own function is called.
        n_bootstrap: number of draws.
        seed: for the draws.

    Returns:
        (mean, standard deviation) over the draws, for each function.
    """
    values = np.array(data)
    if any(fn not in (np.max, np.min) for fn in reduce_fns) or values.dtype.kind not in "biuf":
        return verls_bootstrap(data, subset_size, reduce_fns, n_bootstrap, seed)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return verls_bootstrap(data, subset_size, reduce_fns, n_bootstrap, seed)
    drawn = values[_drawn(len(values), subset_size, n_bootstrap, seed)]
    reduced = [drawn.max(axis=1) if fn is np.max else drawn.min(axis=1) for fn in reduce_fns]
    return [(float(result.mean()), float(result.std())) for result in reduced]


functools.update_wrapper(bootstrap_metric, verls_bootstrap, assigned=(), updated=())  # for `hooks.py`
metric_utils.bootstrap_metric = bootstrap_metric
