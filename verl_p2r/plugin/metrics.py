# SPDX-License-Identifier: Apache-2.0
"""What PA-GRPO logs at each training step beside verl's own metrics.

| metric                                                        | meaning                                       |
|---------------------------------------------------------------|-----------------------------------------------|
| `p2r/{process}/{reward,accuracy,format,length_reward,tokens}` | mean over the batch's responses               |
| `p2r/collapse/{perception,reasoning}`                         | share of groups whose rewards are equal in it |
| `p2r/collapse/combined`                                       | the same for R_P + R_R, GRPO's reward         |
| `p2r/no_verdict`                                              | share of responses without a verdict          |
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

PROCESSES = ("perception", "reasoning")
PARTS = ("reward", "accuracy", "format", "length_reward", "tokens")


def process_metrics(infos: Sequence[Mapping[str, float]], groups: Sequence[str]) -> dict[str, float]:
    """Average the reward manager's numbers over a batch.

    Args:
        infos: `reward_extra_info` of each response, padding rows left out. Length n.
        groups: the prompt's uid of each response. Length n.

    Returns:
        The metrics of this module's table. What was never measured (NaN throughout) is left out.
    """
    metrics: dict[str, float] = {}
    column = {key: np.array([info[key] for info in infos], dtype=float) for key in infos[0]} if infos else {}
    if not column:
        return metrics
    for process in PROCESSES:
        for part in PARTS:
            values = column[f"{process}_{part}"]
            if not np.isnan(values).all():
                metrics[f"p2r/{process}/{part}"] = float(np.nanmean(values))
    rewards = {process: column[f"{process}_reward"] for process in PROCESSES}
    rewards["combined"] = rewards["perception"] + rewards["reasoning"]
    for name, values in rewards.items():
        metrics[f"p2r/collapse/{name}"] = _share_of_equal_groups(values, groups)
    metrics["p2r/no_verdict"] = float(1 - column["perception_valid"].mean())
    return metrics


def _share_of_equal_groups(values: np.ndarray, groups: Sequence[str]) -> float:
    """Share of the groups whose values are all equal; groups of one, which are always equal, do not count."""
    _, index, sizes = np.unique(np.asarray(groups, dtype=str), return_inverse=True, return_counts=True)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    several = sizes > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float((high - low < 1e-9)[several].mean()) if several.any() else 0.0
