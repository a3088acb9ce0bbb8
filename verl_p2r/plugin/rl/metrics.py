# SPDX-License-Identifier: Apache-2.0
"""What PA-GRPO logs at each training step in addition to verl's own metrics; `METRICS` lists it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PROCESSES = ("perception", "reasoning")
PARTS = ("reward", "accuracy", "format", "length_reward", "tokens")
METRICS: Mapping[str, str] = {
    "p2r/perception/reward": "mean of R_P = accuracy + format + length reward; responses without a verdict left out",
    "p2r/perception/accuracy": "share of judged responses whose observation suffices to deduce the answer",
    "p2r/perception/format": "share of responses with a well-formed observation block",
    "p2r/perception/length_reward": "mean of R_len,P; responses without a verdict left out",
    "p2r/perception/tokens": "mean length of the perception segment, in tokens",
    "p2r/reasoning/reward": "mean of R_R = accuracy + format + length reward",
    "p2r/reasoning/accuracy": "mean accuracy of the answer, in [0, 1]",
    "p2r/reasoning/format": "share of responses with well-formed think and answer blocks",
    "p2r/reasoning/length_reward": "mean of R_len,R",
    "p2r/reasoning/tokens": "mean length of the reasoning segment, in tokens",
    "p2r/collapse/perception": "share of groups whose R_P are all equal, so that perception learns nothing from them",
    "p2r/collapse/reasoning": "the same for R_R",
    "p2r/collapse/combined": "the same for R_P + R_R, the reward that GRPO would use",
    "p2r/no_verdict": "share of responses without a verdict",
    "p2r/judge/seconds": "mean time of a verdict in seconds, queue and retries included",
    "p2r/judge/seconds_p95": "95th percentile of that time",
    "p2r/judge/cached": "share of verdicts that came from the cache",
    "p2r/judge/retries": "mean number of times the judge was asked again for one verdict",
    "p2r/judge/prompt_tokens": "mean prompt tokens of a verdict, as the server counts them; 0 from the cache",
    "p2r/judge/completion_tokens": "the same for the tokens that the judge wrote",
    "p2r/judge/agreement": "share of verdicts that another judge confirms; only with another judge",
    "p2r/judge/share_of_sampling": "mean time in flight of a second answer divided by that of sampling its response; "
    "only for p2r/judge=self",
    "p2r/lost": "share of rollouts that failed; the trainer logs it",
}
"""Every metric of ours and what it means; means are over a batch's responses."""

_JUDGE_MEANS = {
    "seconds": "seconds",
    "cached": "cached",
    "retries": "retries",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "agreement": "agrees",
    "share_of_sampling": "share_of_sampling",
}
"""The last part of a metric's name → the number of a response, `judge_…`, of which it is the mean."""
_FROM_THE_VERDICT = {("perception", part) for part in ("reward", "accuracy", "length_reward")}


def process_metrics(infos: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, float]:
    """Average the reward manager's numbers over a batch.

    Args:
        infos: `reward_extra_info` of each response, padding rows left out. Length n.
        groups: the prompt's uid of each response. Length n.

    Returns:
        Metrics named in `METRICS`, except those that were never measured.
    """
    if not infos:
        return {}
    metrics: dict[str, float] = {}
    numbers = [key for key, value in infos[0].items() if not isinstance(value, str)]
    # None means not measured; it becomes NaN.
    column = {key: np.array([info[key] for info in infos], dtype=float) for key in numbers}
    judged = column["perception_valid"] == 1
    everyone = np.ones(len(infos), dtype=bool)
    for process in PROCESSES:
        for part in PARTS:
            # Without a verdict only the form and the length of a row's perception are known.
            counts = judged if (process, part) in _FROM_THE_VERDICT else everyone
            values = column[f"{process}_{part}"][counts]
            if not np.isnan(values).all():
                metrics[f"p2r/{process}/{part}"] = float(np.nanmean(values))
    perception, reasoning = column["perception_reward"], column["reasoning_reward"]
    uids = np.asarray(groups, dtype=str)
    metrics["p2r/collapse/perception"] = _share_of_equal_groups(perception[judged], uids[judged])
    metrics["p2r/collapse/reasoning"] = _share_of_equal_groups(reasoning, uids)
    metrics["p2r/collapse/combined"] = _share_of_equal_groups((perception + reasoning)[judged], uids[judged])
    metrics["p2r/no_verdict"] = float(1 - judged.mean())
    return metrics | _judge_metrics(column)


def _judge_metrics(column: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Cost and agreement of the judge, over the responses for which each was measured."""
    asked = {key: values[~np.isnan(values)] for key, values in column.items() if key.startswith("judge_")}
    metrics = {
        f"p2r/judge/{name}": float(asked[f"judge_{key}"].mean())
        for name, key in _JUDGE_MEANS.items()
        if len(asked.get(f"judge_{key}", ()))
    }
    if "p2r/judge/seconds" in metrics:
        metrics["p2r/judge/seconds_p95"] = float(np.percentile(asked["judge_seconds"], 95))
    return metrics


def _share_of_equal_groups(values: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose values are all equal; groups of one do not count."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    several = sizes > 1
    return float((high - low < 1e-9)[several].mean()) if several.any() else 0.0
