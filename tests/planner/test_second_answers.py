# SPDX-License-Identifier: Apache-2.0
"""What the policy's second answers cost by the planner's arithmetic, worked out by hand for Qwen2.5-VL-7B."""

from dataclasses import replace

import pytest
from test_planner import EMBEDDING, JOB, SURE, values

from verl_p2r.planner import SecondAnswers, step_time

ASKED = replace(JOB, judge=None, second_answers=SecondAnswers(observation=224, answer=8))


def operations(tokens: int) -> float:
    """Operations of the language model on one sequence."""
    return 2 * (28 * 233_046_016 + EMBEDDING) * tokens + 2 * 28 * 3584 * tokens**2


def test_a_question_is_computed_once_and_each_observation_once():
    # 448 observations of 224 tokens after 56 questions of 300, at 8 × 312 T/s × 0.35; 8 decoding steps after 800.
    prefill = (448 * (operations(524) - operations(300)) + 56 * operations(300)) / (8 * 312e12 * 0.35)
    seconds = values(step_time(ASKED, SURE))
    assert seconds["second answers"] == pytest.approx(prefill + seconds["generate"] / 100)
    assert seconds["a step"] == pytest.approx(sum(seconds.values()) - seconds["a step"] - seconds["the run"])


def test_without_second_answers_there_is_no_such_line():
    assert "second answers" not in values(step_time(JOB, SURE))


def test_thinking_first_costs_as_much_as_the_thinking_of_the_response():
    short = values(step_time(ASKED, SURE))
    thought = values(step_time(replace(ASKED, second_answers=SecondAnswers(224, 424)), SURE))
    assert thought["second answers"] - short["second answers"] == pytest.approx(short["generate"] * 416 / 800)
