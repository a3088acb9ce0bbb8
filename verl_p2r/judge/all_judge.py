# SPDX-License-Identifier: Apache-2.0
"""The judge `all`: Yes if every member says Yes."""

from collections.abc import Mapping

from verl_p2r.judge.combined import CombinedJudge, known, probability_of
from verl_p2r.judge.protocol import Verdict


class AllJudge(CombinedJudge):
    """Accepts what every member accepts, for example an observation that is sufficient and true [ours].

    A single No decides. Without a No, a member without a verdict leaves the observation without one. P(Yes) is the
    lowest of the members', which does not assume that their errors are independent.
    """

    def decide(self, verdicts: Mapping[str, Verdict]) -> tuple[bool | None, float | None]:
        """Apply the rule of the class."""
        values = [verdict.value for verdict in verdicts.values()]
        probabilities = known([probability_of(verdict) for verdict in verdicts.values()])
        value = False if False in values else None if None in values else True
        return value, min(probabilities) if probabilities else None
