# SPDX-License-Identifier: Apache-2.0
"""A judge that says Yes to everything, to see that a run notices it.

    PYTHONPATH=examples/quickstart OUT=outputs/lying_judge bash examples/quickstart/rl.sh \
      algorithm.p2r.judge.name=lying_judge:LyingJudge

From step 5 on, `p2r/judge/one_sided` is 1 and the log warns.
"""

from verl_p2r.judge import JudgeRequest, Verdict


class LyingJudge:
    """Accepts every observation."""

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation."""
        return Verdict(True, "I believe everything")
