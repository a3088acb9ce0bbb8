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
    "p2r/collapse/verdict": "share of groups whose verdicts are all equal, rules of the guards aside",
    "p2r/no_verdict": "share of responses without a verdict",
    "p2r/judge/yes": "share of Yes among the judge's own verdicts, rules of the guards aside",
    "p2r/judge/one_sided": "1 if at least 99 % of the verdicts of 5 steps are equal while at least 10 % of the answers "
    "disagree with them, else 0: a judge that says Yes to everything teaches nothing, and a warning says so; the "
    "trainer logs it",
    "p2r/judge/seconds": "mean time of a verdict in seconds, queue and retries included",
    "p2r/judge/seconds_p95": "95th percentile of that time",
    "p2r/judge/cached": "share of verdicts that came from the cache",
    "p2r/judge/retries": "mean number of times the judge was asked again for one verdict",
    "p2r/judge/prompt_tokens": "mean prompt tokens of a verdict, as the server counts them; 0 from the cache",
    "p2r/judge/completion_tokens": "the same for the tokens that the judge wrote",
    "p2r/judge/agreement": "share of verdicts that another judge confirms; only with another judge",
    "p2r/judge/share_of_sampling": "mean time in flight of a second answer divided by that of sampling its response; "
    "only for p2r/judge=self",
    "p2r/judge/<member>/yes": "the same share for one member of a combined judge",
    "p2r/judge/<member>/no_verdict": "share of the observations on which this member reached no verdict",
    "p2r/judge/unanimous": "share of the observations with a verdict of each member on which all of them agree",
    "p2r/lost": "share of rollouts that failed; the trainer logs it",
}
"""Every metric of ours and what it means; means are over a batch's responses."""

_JUDGE_MEANS = {
    "seconds": "judge_seconds",
    "cached": "judge_cached",
    "retries": "judge_retries",
    "prompt_tokens": "judge_prompt_tokens",
    "completion_tokens": "judge_completion_tokens",
    "agreement": "judge_agrees",
    "share_of_sampling": "judge_share_of_sampling",
}
"""The last part of a metric's name → the number of a response of which it is the mean."""

MEMBER = "verdict_"
"""What a member's column in `reward_extra_info` begins with; its label follows."""

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
    if "judge_seconds" in column:
        asked = ~np.isnan(column["judge_seconds"])
        metrics |= _judge_metrics({key: values[asked] for key, values in column.items()}, uids[asked])
    return metrics


def _judge_metrics(column: Mapping[str, np.ndarray], groups: np.ndarray) -> dict[str, float]:
    """Cost, agreement and verdicts of the judge, over the responses that it was asked about."""
    if not len(groups):
        return {}
    metrics = {
        f"p2r/judge/{name}": float(np.nanmean(column[key]))
        for name, key in _JUDGE_MEANS.items()
        if key in column and not np.isnan(column[key]).all()
    }
    metrics["p2r/judge/seconds_p95"] = float(np.percentile(column["judge_seconds"], 95))
    given = ~np.isnan(column["perception_accuracy"])
    if given.any():
        yes = (column["perception_accuracy"][given] >= 0.5).astype(float)
        metrics["p2r/judge/yes"] = float(yes.mean())
        metrics["p2r/collapse/verdict"] = _share_of_equal_groups(yes, groups[given])
    return metrics | _member_metrics({k.removeprefix(MEMBER): v for k, v in column.items() if k.startswith(MEMBER)})


def _member_metrics(verdicts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Verdicts of a combined judge's members: label → 1, 0 or NaN for each observation."""
    metrics: dict[str, float] = {}
    for label, values in verdicts.items():
        metrics[f"p2r/judge/{label}/no_verdict"] = float(np.isnan(values).mean())
        if not np.isnan(values).all():
            metrics[f"p2r/judge/{label}/yes"] = float(np.nanmean(values))
    if verdicts:
        table = np.stack(list(verdicts.values()))
        table = table[:, ~np.isnan(table).any(axis=0)]
        if table.size:
            metrics["p2r/judge/unanimous"] = float((table == table[0]).all(axis=0).mean())
    return metrics


def _share_of_equal_groups(values: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose values are all equal; groups of one do not count."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    several = sizes > 1
    return float((high - low < 1e-9)[several].mean()) if several.any() else 0.0
