# SPDX-License-Identifier: Apache-2.0
"""Notices a judge that gives every observation the same verdict while the answers vary [ours].

Such a judge teaches nothing: the perception rewards of a group then differ only by form and length. A server that runs
another model, a prompt that the model does not understand, or a policy that has learned to please the judge looks like
this, and no other metric of a run shows it.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

STEPS = 5
"""The last steps whose verdicts count together."""
LEAST = 64
"""The fewest verdicts that are judged."""
SAME = 0.99
"""The share of equal verdicts from which a judge counts as one-sided."""
VARIED = 0.1
"""The least share of answers that disagrees with a one-sided judge: wrong ones if it says Yes, right ones if No."""


class JudgeWatch:
    """Follows the judge's verdicts over the steps of a run.

    Args:
        name: The judge's name in the warning.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps: deque[list[tuple[bool, float]]] = deque(maxlen=STEPS)
        self._warned = False

    def look(self, infos: Sequence[Mapping[str, Any]]) -> float | None:
        """Add a step, and warn when the judge becomes one-sided.

        Args:
            infos: `reward_extra_info` of each response of the step.

        Returns:
            The metric `p2r/judge/one_sided`: 1 if the judge is one-sided, else 0; None if it was not asked.
        """
        pairs = [
            (info["perception_accuracy"] >= 0.5, info["reasoning_accuracy"])
            for info in infos
            if info["judge_seconds"] is not None and info["perception_accuracy"] is not None
        ]
        self._steps.append(pairs)
        verdicts = [pair for step in self._steps for pair in step]
        if not pairs:
            return None
        yes = sum(value for value, _ in verdicts) / len(verdicts)
        right = sum(accuracy for _, accuracy in verdicts) / len(verdicts)
        always_yes, always_no = yes >= SAME and 1 - right >= VARIED, yes <= 1 - SAME and right >= VARIED
        one_sided = (always_yes or always_no) and len(verdicts) >= LEAST and len(self._steps) == STEPS
        if one_sided and not self._warned:
            logger.warning(
                "the judge %r said %s to %.1f%% of %d observations in the last %d steps, while %.0f%% of the answers "
                "were %s: its verdicts teach nothing. Read some rollouts (trainer.rollout_data_dir), and measure the "
                "judge with verl-p2r judge-eval. Ignore this if the observations are indeed all %s",
                self._name,
                "Yes" if always_yes else "No",
                100 * (yes if always_yes else 1 - yes),
                len(verdicts),
                len(self._steps),
                100 * (1 - right if always_yes else right),
                "wrong" if always_yes else "right",
                "sufficient" if always_yes else "insufficient",
            )
        self._warned = one_sided
        return float(one_sided)
