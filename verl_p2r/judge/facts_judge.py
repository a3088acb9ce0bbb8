# SPDX-License-Identifier: Apache-2.0
"""The judge `facts`: compares the observation with facts that the row lists; it needs no model."""

from verl_p2r.judge.facts import contains, words
from verl_p2r.judge.protocol import JudgeRequest, Verdict


class FactsJudge:
    """Accepts an observation that states every fact of its row and no phrase that a fact excludes [ours].

    Phrases are compared word by word, ignoring case and punctuation; numbers keep their sign and decimals. Negation is
    not understood: "not red" states "red", so list such phrases in the fact's `not`.
    """

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Look up each fact in the observation.

        Raises:
            ValueError: The row lists no facts.
        """
        if not request.facts:
            raise ValueError(
                f"{request.row}: the facts judge found no extra_info.facts: list there what the observation must "
                "state, or set algorithm.p2r.judge.name to another judge"
            )
        observed = words(request.observation)
        for fact in request.facts:
            if not contains(observed, fact.state):
                return Verdict(False, f"does not state {fact.state!r}")
            for phrase in fact.excludes:
                if contains(observed, phrase):
                    return Verdict(False, f"states {phrase!r}, which contradicts {fact.state!r}")
        return Verdict(True, "states every fact")
