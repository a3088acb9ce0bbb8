# SPDX-License-Identifier: Apache-2.0
"""A judge that says the same of everything is noticed, by hand and in a step of the trainer."""

import logging

import pytest

from verl_p2r.plugin.rl.judge_watch import LEAST, STEPS, JudgeWatch


def step(yes: int, no: int, right: float, asked: bool = True, rule_no: int = 0) -> list[dict]:
    """Responses of one step: `yes` and `no` verdicts, answers right at this rate, and No's of a rule."""
    total = yes + no
    rows = [
        {
            "perception_accuracy": float(i < yes),
            "reasoning_accuracy": float(i % total < right * total),
            "judge_seconds": 0.1 if asked else None,
        }
        for i in range(total)
    ]
    by_rule = {"perception_accuracy": 0.0, "reasoning_accuracy": 0.0, "judge_seconds": None}
    return [*rows, *[by_rule] * rule_no]


def watched(*steps: list[dict]) -> list[float | None]:
    watch = JudgeWatch("openai")
    return [watch.look(infos) for infos in steps]


@pytest.mark.parametrize(
    ("one", "one_sided"),
    [
        (step(100, 0, right=0.4), 1.0),  # always Yes, while most answers are wrong
        (step(100, 0, right=0.4, rule_no=50), 1.0),  # what a rule turned away says nothing of the judge
        (step(199, 1, right=0.4), 1.0),
        (step(100, 0, right=0.95), 0.0),  # nearly all answers are right: perception may be learned
        (step(97, 3, right=0.4), 0.0),
        (step(0, 100, right=0.4), 1.0),  # always No, while many answers are right
        (step(0, 100, right=0.02), 0.0),  # nothing is learned yet
        (step(50, 50, right=0.4), 0.0),
    ],
)
def test_five_equal_steps(one, one_sided):
    assert watched(*[one] * STEPS) == [0.0] * (STEPS - 1) + [one_sided]


def test_few_verdicts_say_nothing():
    few = (LEAST - 1) // STEPS
    assert watched(*[step(few, 0, right=0.0)] * STEPS)[-1] == 0.0
    assert watched(*[step(few + 1, 0, right=0.0)] * STEPS)[-1] == 1.0


def test_a_step_in_which_no_judge_was_asked_has_no_metric():
    assert watched(step(10, 10, right=0.5, asked=False)) == [None]
    unanswered = [{"perception_accuracy": None, "reasoning_accuracy": 1.0, "judge_seconds": 1.0}]
    assert watched(unanswered) == [None]


def test_a_soft_reward_counts_from_one_half():
    soft = [{**row, "perception_accuracy": 0.6} for row in step(100, 0, right=0.4)]
    assert watched(*[soft] * STEPS)[-1] == 1.0


def test_the_warning_comes_once_and_again_after_a_recovery(caplog):
    liar, honest = step(100, 0, right=0.47), step(50, 50, right=0.47)
    with caplog.at_level(logging.WARNING):
        metrics = watched(*[liar] * 7, honest, *[liar] * STEPS)
    assert metrics == [0.0] * 4 + [1.0] * 3 + [0.0] * 5 + [1.0]
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(
        "the judge 'openai' said Yes to 100.0% of 500 observations in the last 5 steps, while 53% of the answers "
        "were wrong: its verdicts teach nothing"
    )
