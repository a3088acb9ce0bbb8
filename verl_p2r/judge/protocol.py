# SPDX-License-Identifier: Apache-2.0
"""What a judge is asked, what it answers, and the protocol between."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from verl_p2r.judge.facts import Fact


@dataclass(frozen=True)
class SecondAnswer:
    """The policy's second answer to the question, given from its own observation without the media.

    Args:
        text: The answer, empty if none could be read; None if the server aborted the request.
        accuracy: The answer's accuracy, in [0, 1], by the scorer of the response's own answer.
        seconds: Time it took, in seconds.
        sampling_seconds: Time that sampling the response took, in seconds.
        prompt_tokens: Tokens of its prompt.
        completion_tokens: Tokens that the policy wrote.
    """

    text: str | None
    accuracy: float = 0.0
    seconds: float = 0.0
    sampling_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class JudgeRequest:
    """Everything a judge may know about one response.

    Args:
        question: The question as the model received it, options included.
        solution: The ground truth, with or without its `<answer>` tags.
        observation: The text between the model's `<observation>` tags.
        problem_type: One of `accuracy.problem_types()`.
        facts: The row's facts, or None if it lists none.
        row: The row's name in messages.
        second_answer: The policy's answer from this observation; None if the run does not ask for one.
        media: The row's videos and images as canonical elements (see `media.source`), which only the judge `visual`
            reads [ours]. A text judge never sees them.
    """

    question: str
    solution: str
    observation: str
    problem_type: str = ""
    facts: tuple[Fact, ...] | None = None
    row: str = ""
    second_answer: SecondAnswer | None = None
    media: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A judge's decision and its cost.

    Args:
        value: True if the observation suffices, False if it does not, None if no verdict was reached.
        reason: The judge's own words, or why there is no verdict.
        source: The judge itself, a cache of its verdicts, or a rule applied before the judge.
        retries: How often the request was repeated.
        prompt_tokens: Prompt tokens as the server counts them; 0 if it does not report them.
        completion_tokens: Completion tokens, likewise.
        status: The HTTP status with which the server refused the request; None if it did not.
        useless: Whether the server replied, but never with a verdict.
        seconds: Time spent on this verdict before the judge was asked, in seconds.
        agrees: Whether another judge gave the same verdict; None if no second judge gave one.
        probability: P(Yes), for a soft reward; None if the judge gives none [ours].
        members: Label and value of each member's verdict, if the judge combines several [ours].
    """

    value: bool | None
    reason: str
    source: Literal["judge", "cache", "rule"] = "judge"
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int | None = None
    useless: bool = False
    seconds: float = 0.0
    agrees: bool | None = None
    probability: float | None = None
    members: tuple[tuple[str, bool | None], ...] = ()

    def accuracy(self, soft: bool) -> float | None:
        """Return R_acc,P: 1 for Yes and 0 for No; None without a verdict.

        Args:
            soft: Use P(Yes) instead if the judge gives it [ours].

        >>> verdict = Verdict(True, "", probability=0.7)
        >>> verdict.accuracy(soft=False), verdict.accuracy(soft=True)
        (1.0, 0.7)
        """
        if self.value is None:
            return None
        return self.probability if soft and self.probability is not None else float(self.value)


@runtime_checkable
class Judge(Protocol):
    """Decides whether an observation suffices to deduce the answer. One instance serves many concurrent calls.

    A judge that can read any row may also have `async def ask_anew(request) -> Verdict`, the same without a cache.
    `check_judge` then asks it two known questions before a run begins. A judge whose verdicts carry P(Yes) has the
    attribute `gives_probabilities`, which is True.
    """

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation. A verdict of None means that none was reached.

        An exception loses the rollout, and too many lost rollouts end the run (`trainer.p2r.max_lost_share`).
        """
        ...
