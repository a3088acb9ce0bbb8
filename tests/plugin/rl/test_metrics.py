# SPDX-License-Identifier: Apache-2.0
"""What a training step logs: by hand, and through verl's own averaging over sub-steps."""

import math

import pytest
from verl.trainer.ppo.v1.utils import MetricsAggregator

from verl_p2r.plugin.rl.metrics import METRICS, process_metrics

JUDGED = {
    "judge_seconds": 1.0,
    "judge_cached": 0,
    "judge_retries": 2,
    "judge_prompt_tokens": 300,
    "judge_completion_tokens": 4,
    "judge_agrees": 1,
    "judge_share_of_sampling": 0.1,
}
"""Every number that a verdict can have."""


def info(perception: float, reasoning: float, **changes) -> dict:
    """One response's numbers as the reward manager writes them."""
    numbers = {
        "perception_reward": perception,
        "perception_accuracy": 0.0,
        "perception_format": 0.0,
        "perception_length_reward": 0.0,
        "perception_tokens": 0,
        "perception_valid": 1,
        "reasoning_reward": reasoning,
        "reasoning_accuracy": 0.0,
        "reasoning_format": 0.0,
        "reasoning_length_reward": 0.0,
        "reasoning_tokens": 0,
        "both_rewards": 0,
        "acc": 0.0,
        "judge_error": "",
        "judge_seconds": None,
        "judge_cached": None,
        "judge_retries": None,
        "judge_prompt_tokens": None,
        "judge_completion_tokens": None,
        "judge_agrees": None,
        "judge_share_of_sampling": None,
    }
    assert changes.keys() <= numbers.keys()
    return {**numbers, **changes}


def test_step_metrics_match_hand_computed_means():
    infos = [
        info(2.2, 1.0, perception_accuracy=1.0, perception_format=1.0, perception_length_reward=0.2),
        info(1.0, 0.5, perception_format=1.0, reasoning_accuracy=0.5, reasoning_length_reward=0.2),
        info(0.0, 0.0, perception_tokens=30, reasoning_tokens=60),
        info(0.0, 1.7, perception_tokens=10, reasoning_tokens=20, reasoning_format=1.0, perception_valid=0),
    ]
    metrics = process_metrics(infos, ["a", "a", "b", "b"])
    assert metrics == pytest.approx(
        {
            "p2r/perception/reward": 3.2 / 3,  # the row without a verdict says nothing of its perception
            "p2r/perception/accuracy": 1 / 3,
            "p2r/perception/format": 0.5,  # its form and length are known all the same
            "p2r/perception/length_reward": 0.2 / 3,
            "p2r/perception/tokens": 10.0,
            "p2r/reasoning/reward": 0.8,  # (1.0 + 0.5 + 1.7) / 4
            "p2r/reasoning/accuracy": 0.125,
            "p2r/reasoning/format": 0.25,
            "p2r/reasoning/length_reward": 0.05,
            "p2r/reasoning/tokens": 20.0,
            "p2r/collapse/perception": 0.0,  # a: 2.2 and 1.0; b has one verdict left
            "p2r/collapse/reasoning": 0.0,
            "p2r/collapse/combined": 0.0,
            "p2r/no_verdict": 0.25,
        }
    )


def test_collapse_is_measured_per_process_and_for_sum():
    """One group where only the sum is equal, one where only R_P is, one where both are; they come interleaved."""
    rewards = {"sum": [(1, 0), (0, 1)], "perception": [(1, 0), (1, 1)], "both": [(1, 1), (1, 1)]}
    infos = [info(*pair[i]) for i in (0, 1) for pair in rewards.values()]
    metrics = process_metrics(infos, [*rewards] * 2)
    assert metrics["p2r/collapse/perception"] == pytest.approx(2 / 3)
    assert metrics["p2r/collapse/reasoning"] == pytest.approx(1 / 3)
    assert metrics["p2r/collapse/combined"] == pytest.approx(2 / 3)


def test_collapse_ignores_float_rounding():
    """0.1 + 0.2 and 0.3 are one reward, though not one float."""
    metrics = process_metrics([info(0.1 + 0.2, 0.0), info(0.3, 1.0)], ["a", "a"])
    assert metrics["p2r/collapse/perception"] == 1.0


def test_groups_of_one_do_not_count_as_collapsed():
    metrics = process_metrics([info(1, 0), info(1, 0), info(1, 1)], ["a", "a", "alone"])
    assert metrics["p2r/collapse/perception"] == 1.0  # only one group could have differed
    only_singles = process_metrics([info(1, 0), info(1, 0)], ["a", "b"])
    assert only_singles["p2r/collapse/perception"] == 0.0


def test_metric_without_any_measurement_is_omitted():
    metrics = process_metrics([info(0, 1, perception_accuracy=None)] * 2, ["a", "a"])
    assert "p2r/perception/accuracy" not in metrics
    assert metrics["p2r/reasoning/reward"] == 1.0
    assert not any(math.isnan(value) for value in metrics.values())


def test_metric_measured_on_some_rows_is_their_mean():
    infos = [info(0, 1, perception_accuracy=accuracy) for accuracy in (None, 1.0, 0.0, 1.0)]
    assert process_metrics(infos, ["a"] * 4)["p2r/perception/accuracy"] == pytest.approx(2 / 3)


def test_judge_cost_metrics_match_hand_computed_values():
    """Over the three responses that it was asked about; the fourth had no observation."""
    infos = [
        info(1, 0, judge_seconds=1.0, judge_cached=0, judge_retries=2),
        info(1, 0, judge_seconds=2.0, judge_cached=0, judge_retries=1, perception_valid=0, judge_error="no reply"),
        info(1, 0, judge_seconds=0.0, judge_cached=1, judge_retries=0),
        info(0, 0),
    ]
    metrics = process_metrics(infos, ["a", "a", "b", "b"])
    assert {name: value for name, value in metrics.items() if name.startswith("p2r/judge/")} == pytest.approx(
        {
            "p2r/judge/seconds": 1.0,
            "p2r/judge/seconds_p95": 1.9,  # between 1 and 2, nine tenths of the way
            "p2r/judge/cached": 1 / 3,
            "p2r/judge/retries": 1.0,
            "p2r/judge/yes": 0.0,
        }
    )


def test_what_a_second_answer_took_by_hand():
    """The first two were asked; the second of them without a verdict of the other judge. A rule settled the third."""
    cost = {"judge_seconds": 0.5, "judge_cached": 0, "judge_retries": 0, "judge_completion_tokens": 4}
    infos = [
        info(1, 0, **cost, judge_prompt_tokens=300, judge_share_of_sampling=0.1, judge_agrees=1),
        info(1, 0, **cost, judge_prompt_tokens=200, judge_share_of_sampling=0.3),
        info(0, 0),
    ]
    metrics = process_metrics(infos, ["a", "a", "a"])
    assert metrics["p2r/judge/prompt_tokens"] == 250
    assert metrics["p2r/judge/completion_tokens"] == 4
    assert metrics["p2r/judge/share_of_sampling"] == pytest.approx(0.2)
    assert metrics["p2r/judge/agreement"] == 1.0


def test_what_the_judge_said_by_hand():
    """Rules are left out: the first group has only equal verdicts of the judge, although a rule gave a No."""
    asked = {"judge_seconds": 1.0, "judge_cached": 0, "judge_retries": 0}
    infos = [
        info(1, 0, perception_accuracy=1.0, **asked),
        info(1, 0, perception_accuracy=0.6, **asked),  # a soft Yes
        info(0, 0, perception_accuracy=0.0),  # by a rule
        info(1, 0, perception_accuracy=1.0, **asked),
        info(0, 0, perception_accuracy=0.0, **asked),
        info(0, 0, perception_accuracy=None, perception_valid=0, **asked),
    ]
    metrics = process_metrics(infos, ["a", "a", "a", "b", "b", "b"])
    assert metrics["p2r/judge/yes"] == 0.75
    assert metrics["p2r/collapse/verdict"] == 0.5


def test_members_by_hand():
    asked = {"judge_seconds": 1.0, "judge_cached": 0, "judge_retries": 0}
    verdicts = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (None, 1.0)]
    infos = [{**info(1, 0, **asked), "verdict_text": text, "verdict_video": video} for text, video in verdicts]
    infos.append({**info(0, 0), "verdict_text": None, "verdict_video": None})  # not asked
    metrics = process_metrics(infos, ["a"] * 5)
    assert {name: value for name, value in metrics.items() if "text" in name or "video" in name} == pytest.approx(
        {
            "p2r/judge/text/yes": 2 / 3,
            "p2r/judge/text/no_verdict": 0.25,
            "p2r/judge/video/yes": 0.5,
            "p2r/judge/video/no_verdict": 0.0,
        }
    )
    assert metrics["p2r/judge/unanimous"] == pytest.approx(2 / 3)  # three observations have both verdicts


def test_a_member_that_never_answers_agrees_with_no_one():
    asked = {"judge_seconds": 1.0, "judge_cached": 0, "judge_retries": 0}
    one = {**info(1, 0, **asked), "verdict_text": None, "verdict_video": 1.0}
    metrics = process_metrics([one, one], ["a", "a"])
    assert metrics["p2r/judge/text/no_verdict"] == 1.0
    assert "p2r/judge/text/yes" not in metrics
    assert "p2r/judge/unanimous" not in metrics


def test_judge_metrics_are_omitted_without_judge_numbers():
    row = {key: value for key, value in info(1, 0).items() if not key.startswith("judge_")}
    assert not any(name.startswith("p2r/judge/") for name in process_metrics([row], ["a"]))


def test_padding_only_batch_logs_no_metrics():
    assert process_metrics([], []) == {}


def test_verls_aggregator_averages_every_metric_over_sub_steps():
    """verl picks max, min or sum by substrings of a metric's name: none of ours may hold one."""
    infos = [info(1, 0, **JUDGED), info(0, 1, perception_valid=0, **JUDGED)]
    steps = [process_metrics(infos, ["a", "a"]) for _ in range(2)]
    steps[1] = {name: value + 3.0 for name, value in steps[0].items()}
    aggregator = MetricsAggregator()
    aggregator.add_step_metrics(steps[0], sample_count=2)
    aggregator.add_step_metrics(steps[1], sample_count=4)  # so the second step weighs twice: first + 3 · 4 / 6
    assert aggregator.get_aggregated_metrics() == pytest.approx({name: v + 2.0 for name, v in steps[0].items()})


def test_row_without_verdict_does_not_prevent_collapse():
    infos = [info(1.0, 1.0), info(1.0, 1.0), info(0.0, 1.0, perception_valid=0)]
    metrics = process_metrics(infos, ["a", "a", "a"])
    assert [metrics[f"p2r/collapse/{name}"] for name in ("perception", "reasoning", "combined")] == [1.0, 1.0, 1.0]


def test_every_logged_metric_is_documented():
    judged = info(1.0, 1.0, **JUDGED)
    judged |= {"verdict_<member>": 1.0}
    logged = process_metrics([judged, judged], ["a", "a"])
    by_the_trainer = {"p2r/lost", "p2r/judge/one_sided"}
    assert {*logged, *by_the_trainer} == set(METRICS)
