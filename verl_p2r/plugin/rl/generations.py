# SPDX-License-Identifier: Apache-2.0
"""Both process rewards and the judge's verdict in the generations that verl's loggers show (W&B, TensorBoard, …).

verl shows three things of a validation's response: input, output and score. The score becomes a line of text, which all
its loggers accept.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def score_lines(scores: Sequence[float], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Describe the rewards of responses.

    Args:
        scores: R_P + R_R of each response. Length n.
        columns: the reward manager's keys and their n values; a column of another length is ignored, as verl does.

    Returns:
        One line a response.
    """
    whole = {name: values for name, values in columns.items() if len(values) == len(scores)}
    return [
        score_line(score, {name: values[place] for name, values in whole.items()}) for place, score in enumerate(scores)
    ]


def score_line(score: float, info: Mapping[str, Any]) -> str:
    """Describe the rewards of one response.

    Args:
        score: R_P + R_R.
        info: its `reward_extra_info`; without our keys, as from another reward manager, the score stays alone.

    >>> score_line(3.2, {"perception_reward": 1.2, "perception_accuracy": 0.0, "reasoning_reward": 2.0, "acc": 1.0})
    '3.20 = perception 1.20 (judge: No) + reasoning 2.00 (answer: 1.00)'
    """
    if info.get("perception_reward") is None or info.get("reasoning_reward") is None:
        return f"{score:.2f}"
    verdict = _verdict(info.get("perception_accuracy"))
    return (
        f"{score:.2f} = perception {info['perception_reward']:.2f} (judge: {verdict})"
        f" + reasoning {info['reasoning_reward']:.2f} (answer: {info['acc']:.2f})"
    )


def _verdict(accuracy: float | None) -> str:
    """Return a judge's verdict in words; with a soft reward it is P(Yes)."""
    if accuracy is None:
        return "no verdict"
    return {1.0: "Yes", 0.0: "No"}.get(accuracy, f"P(Yes) = {accuracy:.2f}")
