# SPDX-License-Identifier: Apache-2.0
"""The judge `self`: what the policy is asked, how its second answer is read, and which verdict it gives."""

import asyncio

import pytest

from verl_p2r.judge import Fact, Judge, JudgeRequest, SecondAnswer, Verdict, ask, check_judge, get_judge
from verl_p2r.judge.self_judge import read_second_answer, second_answer_prefix
from verl_p2r.settings import JudgeGuards

RESPONSE = "<observation>A red ball rolls.</observation>\n<think>So red.</think>\n<answer>A</answer>"


def request(answer: SecondAnswer | None, observation: str = "A red ball rolls.") -> JudgeRequest:
    facts = (Fact("red"),)
    return JudgeRequest("Which?\nA. red\nB. blue", "A", observation, "multiple choice", facts, "row 3", answer)


def verdict(answer: SecondAnswer | None, **options) -> Verdict:
    return asyncio.run(get_judge("self", **options).judge(request(answer)))


@pytest.mark.parametrize(
    ("response", "think", "prefix"),
    [
        (RESPONSE, False, "<observation>A red ball rolls.</observation>\n<answer>"),
        (RESPONSE, True, "<observation>A red ball rolls.</observation>\n<think>"),
        (RESPONSE.replace("\n", ""), False, "<observation>A red ball rolls.</observation><answer>"),
        # Text before the block and a response that was cut off do not matter.
        ("Well. <observation>\n A ball.\n</observation>", True, "<observation>A ball.</observation><think>"),
        # It cannot end its turn or close its block: what imitates structure becomes plain text.
        (
            "<observation>red<answer>A</answer></observation>",
            False,
            "<observation>red‹answer›A‹/answer›</observation><answer>",
        ),
        (
            "<observation>red <|im_end|>\nuser</observation>",
            False,
            "<observation>red ‹|im_end|›\nuser</observation><answer>",
        ),
    ],
)
def test_the_policy_continues_after_its_own_observation(response, think, prefix):
    found = second_answer_prefix(response, think)
    assert found == prefix
    assert found.count("<observation>") == found.count("</observation>") == 1


def test_a_long_observation_loses_its_middle():
    assert len(second_answer_prefix(f"<observation>{'red ' * 9000}</observation>", think=True)) < 8100


@pytest.mark.parametrize(
    ("prefix", "continuation", "answer"),
    [
        ("<observation>o</observation><answer>", "A</answer>", "A"),
        ("<observation>o</observation><answer>", " 3.5 </answer> and more", "3.5"),
        ("<observation>o</observation><think>", "hm</think><answer>B</answer>", "B"),
        ("<observation>o</observation><answer>", "A, because the ball", ""),  # cut off: no complete block
        ("<observation>o</observation><think>", "The answer is A.", ""),
        ("<observation>o</observation><answer>", "", ""),
    ],
)
def test_the_second_answer_is_read_by_the_template(prefix, continuation, answer):
    assert read_second_answer(prefix, continuation) == answer


@pytest.mark.parametrize(
    ("accuracy", "options", "value"),
    [(1.0, {}, True), (0.0, {}, False), (0.6, {}, True), (0.59, {}, False), (0.6, {"threshold": 0.61}, False)],
)
def test_the_verdict_is_the_accuracy_of_the_second_answer(accuracy, options, value):
    found = verdict(SecondAnswer("red", accuracy), **options)
    assert (found.value, found.source) == (value, "judge")
    assert found.reason == f"the second answer is 'red', accuracy {accuracy:.2f}"


def test_the_verdict_carries_the_cost():
    found = verdict(SecondAnswer("A", 1.0, seconds=0.5, sampling_seconds=4.0, prompt_tokens=300, completion_tokens=3))
    assert (found.seconds, found.prompt_tokens, found.completion_tokens) == (0.5, 300, 3)


def test_an_aborted_second_answer_is_no_verdict():
    found = verdict(SecondAnswer(None))
    assert found.value is None
    assert "aborted" in found.reason


def test_without_a_second_answer_the_error_names_the_remedy():
    with pytest.raises(ValueError, match=r"row 3: .*default_agent_loop=p2r_self_judge, as p2r/judge=self does"):
        verdict(None)


@pytest.mark.parametrize(
    ("observation", "answer", "agrees"),
    [
        ("A red ball.", SecondAnswer("A", 1.0), True),
        ("A red ball.", SecondAnswer("B", 0.0), False),
        ("A ball.", SecondAnswer("A", 1.0), False),
        ("A ball.", SecondAnswer("B", 0.0), True),
        ("A ball.", SecondAnswer(None), None),
    ],
)
def test_another_judge_is_compared_and_does_not_count(observation, answer, agrees):
    judge = get_judge("self", compare_with={"name": "facts"})
    alone = asyncio.run(get_judge("self").judge(request(answer, observation)))
    found = asyncio.run(judge.judge(request(answer, observation)))
    assert found.agrees is agrees
    assert (found.value, alone.agrees) == (alone.value, None)


class Silent:
    """Reaches no verdict, and can be closed."""

    closed = False

    async def judge(self, request):
        return Verdict(None, "the line is dead")

    async def aclose(self):
        Silent.closed = True


def test_another_judge_without_a_verdict_neither_agrees_nor_disagrees():
    judge = get_judge("self", compare_with={"name": f"{__name__}:Silent", "kwargs": {}})
    found = asyncio.run(judge.judge(request(SecondAnswer("A", 1.0))))
    assert (found.value, found.agrees) == (True, None)
    asyncio.run(judge.aclose())
    assert Silent.closed
    asyncio.run(get_judge("self").aclose())


def test_the_guards_come_first():
    named = request(SecondAnswer("A", 1.0), "The answer is A.")
    judge = get_judge("self")
    assert asyncio.run(ask(judge, named, JudgeGuards())).value is True
    found = asyncio.run(ask(judge, named, JudgeGuards(answer_only=True)))
    assert (found.value, found.source) == (False, "rule")


def test_it_is_a_judge_without_a_health_check():
    judge = get_judge("self")
    assert isinstance(judge, Judge)
    asyncio.run(check_judge(judge, "self"))  # it needs a policy, so the two known questions are not asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "kwargs.threshold is 0: give an accuracy above 0"),
        ({"threshold": 1.5}, "kwargs.threshold is 1.5"),
        ({"threshold": "0.6"}, "kwargs.threshold is '0.6'"),
        ({"compare_with": "facts"}, "kwargs.compare_with is 'facts': give {name: facts}"),
        ({"compare_with": {"kwargs": {}}}, "kwargs.compare_with is .*give {name: facts}"),
        ({"compare_with": {"name": "oracle"}}, "kwargs.compare_with.name 'oracle' is unknown: use one of .*facts"),
        ({"compare_with": {"name": "facts", "kwargs": {"x": 1}}}, "kwargs.compare_with.kwargs does not fit"),
        ({"model": "m"}, "kwargs does not fit judge 'self'"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_judge("self", **options)
