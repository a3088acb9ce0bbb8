# SPDX-License-Identifier: Apache-2.0
"""What PA-GRPO logs at each training step beside verl's own metrics.

| metric                                                        | meaning                                       |
|---------------------------------------------------------------|-----------------------------------------------|
| `p2r/{process}/{reward,accuracy,format,length_reward,tokens}` | mean over the batch's responses               |
| `p2r/collapse/{perception,reasoning}`                         | share of groups whose rewards are equal in it |
| `p2r/collapse/combined`                                       | the same for R_P + R_R, GRPO's reward         |
| `p2r/no_verdict`                                              | share of responses without a verdict          |
| `p2r/judge/{seconds,seconds_p95}`                             | a verdict's time, queue and retries included  |
| `p2r/judge/cached`                                            | share of verdicts that were there already     |
| `p2r/judge/retries`                                           | times a judge was asked again, per verdict    |
| `p2r/lost` (from the trainer)                                 | share of rollouts that failed                 |
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PROCESSES = ("perception", "reasoning")
PARTS = ("reward", "accuracy", "format", "length_reward", "tokens")
_FROM_THE_VERDICT = {("perception", part) for part in ("reward", "accuracy", "length_reward")}


def process_metrics(infos: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, float]:
    """Average the reward manager's numbers over a batch.

    Args:
        infos: `reward_extra_info` of each response, padding rows left out. Length n.
        groups: the prompt's uid of each response. Length n.

    Returns:
        The metrics of this module's table. What was never measured (NaN throughout) is left out.
    """
    if not infos:
        return {}
    metrics: dict[str, float] = {}
    numbers = [key for key, value in infos[0].items() if not isinstance(value, str)]
    # What is None was not measured: NaN from here on.
    column = {key: np.array([info[key] for info in infos], dtype=float) for key in numbers}
    judged = column["perception_valid"] == 1
    everyone = np.ones(len(infos), dtype=bool)
    for process in PROCESSES:
        for part in PARTS:
            # A row without a verdict says nothing of its perception, but for its form and length.
            counts = judged if (process, part) in _FROM_THE_VERDICT else everyone
            values = column[f"{process}_{part}"][counts]
            if not np.isnan(values).all():
                metrics[f"p2r/{process}/{part}"] = float(np.nanmean(values))
    perception, reasoning = column["perception_reward"], column["reasoning_reward"]
    groups = np.asarray(groups, dtype=str)
    metrics["p2r/collapse/perception"] = _share_of_equal_groups(perception[judged], groups[judged])
    metrics["p2r/collapse/reasoning"] = _share_of_equal_groups(reasoning, groups)
    metrics["p2r/collapse/combined"] = _share_of_equal_groups((perception + reasoning)[judged], groups[judged])
    metrics["p2r/no_verdict"] = float(1 - judged.mean())
    return metrics | _judge_metrics(column)


def _judge_metrics(column: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the judge took, over the responses that it was asked about."""
    asked = {key: values[~np.isnan(values)] for key, values in column.items() if key.startswith("judge_")}
    if not len(asked.get("judge_seconds", ())):
        return {}
    seconds = asked["judge_seconds"]
    return {
        "p2r/judge/seconds": float(seconds.mean()),
        "p2r/judge/seconds_p95": float(np.percentile(seconds, 95)),
        "p2r/judge/cached": float(asked["judge_cached"].mean()),
        "p2r/judge/retries": float(asked["judge_retries"].mean()),
    }


def _share_of_equal_groups(values: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose values are all equal; groups of one, which are always equal, do not count."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    several = sizes > 1
    return float((high - low < 1e-9)[several].mean()) if several.any() else 0.0
