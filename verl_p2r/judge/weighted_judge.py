# SPDX-License-Identifier: Apache-2.0
"""The judge `weighted`: Yes if the members' weighted mean reaches a threshold."""

from collections.abc import Mapping
from typing import Any

from verl_p2r.judge.combined import CombinedJudge, probability_of
from verl_p2r.judge.protocol import Verdict


class WeightedJudge(CombinedJudge):
    """Accepts an observation if the weighted mean of the members' P(Yes) reaches a threshold [ours].

        s = Σ w_m p_m / Σ w_m,   p_m = P(Yes) of member m if it gives one, else 1 for Yes and 0 for No

    With equal weights this is the majority. A member without a verdict could be anywhere between 0 and 1: if s lies on
    the same side of the threshold at both ends, that decides; otherwise there is no verdict. P(Yes) is s.

    Args:
        members: Label → `name`, `kwargs` and `weight` of a judge, as in `MemberSettings`.
        threshold: The least s that is a Yes, above 0 and at most 1.

    Raises:
        ValueError: See `CombinedJudge`; or the threshold is out of range.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]], threshold: float = 0.5) -> None:
        super().__init__(members)
        if not 0 < threshold <= 1:
            raise ValueError(f"the judge's threshold is {threshold}: give a number above 0 and at most 1")
        self.threshold = threshold
        self.gives_probabilities = True

    def decide(self, verdicts: Mapping[str, Verdict]) -> tuple[bool | None, float | None]:
        """Apply the rule of the class."""
        probabilities = {label: probability_of(verdict) for label, verdict in verdicts.items()}
        whole = sum(self._weights[label] for label in verdicts)
        lowest = sum(self._weights[label] * (p or 0.0) for label, p in probabilities.items()) / whole
        unknown = sum(self._weights[label] for label, p in probabilities.items() if p is None) / whole
        least = self.threshold - 1e-9  # so that three thirds of one reach 1
        if not unknown:
            return lowest >= least, lowest
        if lowest >= least or lowest + unknown < least:
            return lowest >= least, None
        return None, None
