# SPDX-License-Identifier: Apache-2.0
"""The reward of a response whose second answer the judge `self` reads: the same scorer, and the same keys as ever."""

import numpy as np
import pytest
from test_reward_manager import GOOD, MALFORMED, data, manager, score, tokenizer  # noqa: F401  a fixture

from verl_p2r.judge.self_judge import FIELD

COST = {"accuracy": 0.0, "seconds": 0.5, "sampling_seconds": 4.0, "prompt_tokens": 300, "completion_tokens": 3}
OFF = {"answer_only": False, "copied_question": False}


def answered(tokenizer, text: str | None, response: str = GOOD):  # noqa: F811
    """A row whose rollout carries a second answer, as the loop and verl's worker hand it over."""
    row = data(tokenizer, response)
    row.non_tensor_batch["tool_extra_fields"] = np.array([{FIELD: {"text": text, **COST}}], dtype=object)
    return row


def judged(tokenizer, text: str | None, response: str = GOOD, strict: bool = False, **kwargs) -> dict:  # noqa: F811
    judge = {"name": "self", "guards": OFF, "kwargs": kwargs}
    return score(manager(tokenizer, judge=judge, strict=strict), answered(tokenizer, text, response))[1]


@pytest.mark.parametrize(
    ("text", "accuracy"),
    # The solution is B, and the options are A. blue and B. red.
    [("B", 1.0), ("A", 0.0), ("(b)", 1.0), ("red", 1.0), ("", 0.0), ("purple", 0.0)],
)
def test_the_second_answer_is_scored_as_the_first(tokenizer, text, accuracy):  # noqa: F811
    info = judged(tokenizer, text)
    assert (info["perception_accuracy"], info["perception_valid"]) == (accuracy, 1)
    assert info["perception_reward"] == pytest.approx(2.2 if accuracy else 1.0)
    assert info["reasoning_accuracy"] == 1.0  # the response's own answer


def test_strict_reaches_the_second_answer(tokenizer):  # noqa: F811
    assert judged(tokenizer, "B. red")["perception_accuracy"] == 1.0
    assert judged(tokenizer, "B. red", strict=True)["perception_accuracy"] == 0.0


def test_its_cost_is_measured(tokenizer):  # noqa: F811
    info = judged(tokenizer, "B")
    assert info["judge_seconds"] == pytest.approx(0.5, abs=0.2)
    assert (info["judge_prompt_tokens"], info["judge_completion_tokens"]) == (300, 3)
    assert info["judge_share_of_sampling"] == 0.125
    assert info["judge_agrees"] is None


def test_an_aborted_second_answer_makes_the_row_invalid(tokenizer):  # noqa: F811
    info = judged(tokenizer, None)
    assert (info["perception_valid"], info["perception_accuracy"]) == (0, None)
    assert info["judge_error"] == "the rollout server aborted the second answer"


@pytest.mark.parametrize(
    ("response", "agrees"), [(GOOD, 1), (GOOD.replace("red", "blue"), 0)], ids=["true fact", "false fact"]
)
def test_agreement_with_another_judge_is_measured(tokenizer, response, agrees):  # noqa: F811
    """The row's one fact is red."""
    info = judged(tokenizer, "B", response, compare_with={"name": "facts"})
    assert (info["perception_accuracy"], info["judge_agrees"]) == (1.0, agrees)


def test_every_judge_gives_the_same_keys(tokenizer):  # noqa: F811
    infos = [
        judged(tokenizer, "B"),
        judged(tokenizer, None),
        judged(tokenizer, "B", compare_with={"name": "facts"}),
        judged(tokenizer, "B", MALFORMED),
        score(manager(tokenizer), data(tokenizer, GOOD))[1],
    ]
    assert len({tuple(info) for info in infos}) == 1
    for info in infos:
        assert {type(value) for value in info.values()} <= {int, float, str, type(None)}
