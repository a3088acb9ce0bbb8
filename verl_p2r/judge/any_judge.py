# SPDX-License-Identifier: Apache-2.0
"""The judge `any`: Yes if one member says Yes."""

from collections.abc import Mapping

from verl_p2r.judge.combined import CombinedJudge, known, probability_of
from verl_p2r.judge.protocol import Verdict


class AnyJudge(CombinedJudge):
    """Accepts what at least one member accepts, for example the row's facts or a model [ours].

    A single Yes decides. Without a Yes, a member without a verdict leaves the observation without one. P(Yes) is the
    highest of the members'.
    """

    def decide(self, verdicts: Mapping[str, Verdict]) -> tuple[bool | None, float | None]:
        """Apply the rule of the class."""
        values = [verdict.value for verdict in verdicts.values()]
        probabilities = known([probability_of(verdict) for verdict in verdicts.values()])
        value = True if True in values else None if None in values else False
        return value, max(probabilities) if probabilities else None
