# SPDX-License-Identifier: Apache-2.0
"""A judge of your own: Yes when the observation shares enough words with the correct option.

Measure it on the package's 80 labelled cases, then train with it:

    PYTHONPATH=examples/extend verl-p2r judge-eval my_judge:WordsJudge --kwargs '{least: 2}'
    PYTHONPATH=examples/extend OUT=outputs/my_judge bash examples/quickstart/rl.sh \
      algorithm.p2r.judge.name=my_judge:WordsJudge +algorithm.p2r.judge.kwargs.least=2
"""

import re

from verl_p2r.judge import JudgeRequest, Verdict


class WordsJudge:
    """Counts words; a sketch of a judge, not a good one.

    Args:
        least: words of question and answer that the observation must hold, from 1.
    """

    def __init__(self, least: int = 2) -> None:
        if least < 1:
            raise ValueError(f"least is {least}: give 1 or more")
        self.least = least

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation. Many calls run at once, so keep no state of a single call on the instance."""
        observed = set(re.findall(r"\w+", request.observation.lower()))
        asked = set(re.findall(r"\w+", f"{request.question} {request.solution}".lower()))
        shared = sorted(observed & asked)
        if not observed:
            return Verdict(None, "nothing to read")  # no verdict: the response leaves the statistics
        return Verdict(len(shared) >= self.least, f"shares {', '.join(shared) or 'no word'}")
