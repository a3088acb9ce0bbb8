# SPDX-License-Identifier: Apache-2.0
"""The judge `self`: an observation suffices if the policy answers the question correctly from it, without the media.

The idea is Vision-SR1's (arXiv 2508.19652), for images. The plugin's agent loop `p2r_self_judge` asks the policy, on
the servers that sample; this module says what is asked, reads the answer, and turns its accuracy into a verdict.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from verl_p2r.judge.guards import MAX_OBSERVATION, as_data
from verl_p2r.judge.protocol import Judge, JudgeRequest, Verdict
from verl_p2r.judge.registry import get_judge
from verl_p2r.template import parse_response, perception_end

AGENT_LOOP = "p2r_self_judge"
"""The registered name of the agent loop that asks for second answers."""
FIELD = "second_answer"
"""The key of the second answer in a rollout's `extra_fields`."""

_SPACE = re.compile(r"\s*")


def second_answer_prefix(response: str, think: bool) -> str:
    """Write the beginning of the second answer: the response's observation, and where the policy is to continue.

    The policy sees its usual prompt without the media, then this text as the beginning of its turn, so it stays in
    the template that it was trained on. The text ends with the next block's tag, because many tokenizers have tokens
    that join two tags, and a text cut between them would be tokenized in another way than in training [ours].

    Args:
        response: The decoded response, with a complete observation. The observation passes through `guards.as_data`,
            so that it cannot end its turn or close its block [ours].
        think: Whether the policy thinks first; otherwise it continues inside `<answer>`.

    >>> response = "<observation> A red ball. </observation> <think>So red.</think> <answer>B</answer>"
    >>> second_answer_prefix(response, think=False)
    '<observation>A red ball.</observation> <answer>'
    """
    observation = as_data(parse_response(response).observation or "", MAX_OBSERVATION)
    space = _SPACE.match(response, perception_end(response))
    return f"<observation>{observation}</observation>{space[0] if space else ''}<{'think' if think else 'answer'}>"


def read_second_answer(prefix: str, continuation: str) -> str:
    """Read the second answer, by the template as a response's own answer is read; empty without a complete block.

    Args:
        prefix: What `second_answer_prefix` returned.
        continuation: What the policy wrote after it, decoded.

    >>> read_second_answer("<observation>A red ball.</observation><answer>", "B</answer>")
    'B'
    """
    return parse_response(prefix + continuation).answer or ""


class SelfJudge:
    """Accepts an observation from which the policy itself answers correctly [ours].

    It cannot tell whether the observation is true of the video, only whether it leads to the correct answer.

    Args:
        threshold: The least accuracy of the second answer that counts as a Yes, in (0, 1]; 0.6 as in the data pipeline.
        compare_with: Another judge, `{"name": "facts", "kwargs": {}}`. Its verdicts do not count; the verdict's
            `agrees` says whether it gave the same one.

    Raises:
        ValueError: The threshold is out of range, or the other judge does not exist or does not take its options.
    """

    needs_second_answer = True

    def __init__(self, threshold: float = 0.6, compare_with: Mapping[str, Any] | None = None) -> None:
        where = "algorithm.p2r.judge.kwargs"
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"{where}.threshold is {threshold!r}: give an accuracy above 0 and at most 1, such as 0.6")
        self._threshold = threshold
        self.other: Judge | None = None
        if compare_with is not None:
            where = f"{where}.compare_with"
            if not isinstance(compare_with, Mapping) or not {"name"} <= set(compare_with) <= {"name", "kwargs"}:
                raise ValueError(f"{where} is {compare_with!r}: give {{name: facts}}, with kwargs if the judge has any")
            self.other = get_judge(str(compare_with["name"]), where, **(compare_with.get("kwargs") or {}))

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Give a Yes if the second answer is right.

        Raises:
            ValueError: The request holds no second answer.
        """
        answer = request.second_answer
        if answer is None:
            raise ValueError(
                f"{request.row}: the judge self found no second answer of the policy: set "
                "actor_rollout_ref.rollout.agent.default_agent_loop=p2r_self_judge, as p2r/judge=self does"
            )
        if answer.text is None:
            value, reason = None, "the rollout server aborted the second answer"
        else:
            value = answer.accuracy >= self._threshold
            reason = f"the second answer is {answer.text[:200]!r}, accuracy {answer.accuracy:.2f}"
        verdict = Verdict(
            value,
            reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=answer.seconds,
        )
        if self.other is None or value is None:
            return verdict
        other = await self.other.judge(request)
        return dataclasses.replace(verdict, agrees=None if other.value is None else other.value is value)

    async def aclose(self) -> None:
        """Close what the other judge holds open."""
        aclose = getattr(self.other, "aclose", None)
        if aclose is not None:
            await aclose()
