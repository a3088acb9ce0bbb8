# SPDX-License-Identifier: Apache-2.0
"""The two rewards of Eq. 5: every term worked by hand, and every switch."""

from dataclasses import replace

import pytest

from verl_p2r.rewards import (
    NO_REWARD,
    ProcessReward,
    has_observation,
    length_reward,
    perception_reward,
    reasoning_reward,
)
from verl_p2r.settings import LengthBand, P2RSettings
from verl_p2r.template import ParsedResponse, parse_response

DEFAULT = P2RSettings()
OBSERVATION, THINKING = "a red ball, " * 40, "so it is red, " * 60  # more visible characters than any band has tokens
GOOD = parse_response(f"<observation>{OBSERVATION}</observation><think>{THINKING}</think><answer>A</answer>")
EMPTY = parse_response("no block at all")


def test_total_reward_is_sum_of_terms():
    assert ProcessReward(0.5, 1.0, 0.2).total == pytest.approx(1.7)
    assert NO_REWARD.total == 0


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (127, 0), (128, 0.2), (200, 0.2), (320, 0.2), (321, 0), (10**9, 0)]
)
def test_length_band_includes_both_ends(tokens, expected):
    assert length_reward(tokens, LengthBand(128, 320), accuracy=1, format=1) == expected


@pytest.mark.parametrize(("accuracy", "form", "expected"), [(0, 1, 0), (1, 0, 0), (0, 0, 0), (0.01, 1, 0.2)])
def test_length_reward_requires_accuracy_and_format(accuracy, form, expected):
    assert length_reward(200, LengthBand(128, 320), accuracy=accuracy, format=form) == expected


@pytest.mark.parametrize(
    ("tokens", "verdict", "expected"),
    [
        (200, True, (1, 1, 0.2)),
        (100, True, (1, 1, 0)),
        (200, False, (0, 1, 0)),  # right length, wrong content: no length reward
        (200, None, (0, 1, 0)),  # no verdict: accuracy 0, the caller marks the row
    ],
)
def test_perception_reward_terms_match_hand_computed_values(tokens, verdict, expected):
    reward = perception_reward(GOOD, tokens, verdict, DEFAULT)
    assert (reward.accuracy, reward.format, reward.length) == expected


@pytest.mark.parametrize(
    ("probability", "expected"), [(1.0, (1, 1, 0.2)), (0.5, (0.5, 1, 0.2)), (0.49, (0.49, 1, 0)), (0.0, (0, 1, 0))]
)
def test_a_soft_verdict_is_the_accuracy_and_below_one_half_earns_no_length_reward(probability, expected):
    reward = perception_reward(GOOD, 200, probability, DEFAULT)
    assert (reward.accuracy, reward.format, reward.length) == expected
    assert perception_reward(EMPTY, 200, probability, DEFAULT).total == 0


@pytest.mark.parametrize("observation", [None, "", "  \n", "\u200b\u200b", "\u3164 \u00ad", "\u2800\ufeff"])
@pytest.mark.parametrize("verdict", [True, False, None])
def test_empty_observation_earns_no_perception_reward_for_any_verdict(observation, verdict):
    parsed = ParsedResponse(observation, "t", "A", False, True)
    assert not has_observation(parsed)
    assert perception_reward(parsed, 200, verdict, DEFAULT) == NO_REWARD


def test_observation_with_stray_text_earns_accuracy_only():
    parsed = parse_response(f"well: <observation>{OBSERVATION}</observation><think>t</think><answer>A</answer>")
    assert has_observation(parsed)
    assert perception_reward(parsed, 200, True, DEFAULT) == ProcessReward(1, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "accuracy", "expected"),
    [(400, 1.0, (1, 1, 0.2)), (400, 0.3, (0.3, 1, 0.2)), (319, 1.0, (1, 1, 0)), (400, 0.0, (0, 1, 0))],
)
def test_reasoning_reward_terms_match_hand_computed_values(tokens, accuracy, expected):
    reward = reasoning_reward(GOOD, tokens, accuracy, DEFAULT)
    assert (reward.accuracy, reward.format, reward.length) == expected


@pytest.mark.parametrize("answer", ["\u200b", "\u3164\u2800", " \ufeff "])
def test_answer_without_visible_characters_earns_no_reasoning_reward(answer):
    assert reasoning_reward(ParsedResponse("o", "t", answer, True, False), 400, 1.0, DEFAULT) == NO_REWARD


PADDING = {
    "new lines": "\n",
    "blanks": " ",
    "no-break spaces": "\u00a0",
    "zero-width spaces": "\u200b",
    "soft hyphens": "\u00ad",
    "Hangul fillers": "\u3164",
    "byte order marks": "\ufeff",
    "braille blanks": "\u2800",
    "bidirectional marks": "\u202e",
    "tags": "\U000e0041",
}
PLACES = {
    "in the observation": "<observation>{}a red ball</observation><think>t</think><answer>3</answer>",
    "before the observation": "{}<observation>a red ball</observation><think>t</think><answer>3</answer>",
    "in the think": "<observation>a red ball</observation><think>{}t</think><answer>3</answer>",
    "nothing else in the think": "<observation>a red ball</observation><think>{}</think><answer>3</answer>",
    "between the blocks": "<observation>a red ball</observation><think>t</think>{}<answer>3</answer>",
    "in the answer": "<observation>a red ball</observation><think>t</think><answer>3{}</answer>",
    "at the end": "<observation>a red ball</observation><think>t</think><answer>3</answer>{}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("padding", PADDING)
def test_invisible_padding_earns_no_length_reward(padding, place):
    """Even if a caller counts more tokens, at most the number of visible characters counts."""
    parsed = parse_response(PLACES[place].format(PADDING[padding] * 400))
    assert perception_reward(parsed, 200, True, DEFAULT).length == 0
    assert reasoning_reward(parsed, 400, 1.0, DEFAULT).length == 0


def test_missing_answer_or_format_limits_reasoning_reward():
    assert reasoning_reward(EMPTY, 400, 1.0, DEFAULT) == NO_REWARD
    unformed = parse_response("<observation>o</observation><answer>A</answer>")
    assert reasoning_reward(unformed, 400, 1.0, DEFAULT) == ProcessReward(1, 0, 0)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, float("nan"), float("inf")])
def test_accuracy_out_of_range_is_refused(accuracy):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        reasoning_reward(GOOD, 400, accuracy, DEFAULT)


def test_each_process_uses_its_own_reward_settings():
    settings = P2RSettings.from_mapping(
        {
            "perception": {
                "accuracy_weight": 2,
                "format_weight": 0.5,
                "length": {"minimum": 1, "maximum": 2, "reward": 0.1},
            },
            "reasoning": {"accuracy_weight": 3, "format_weight": 0.25},
        }
    )
    assert perception_reward(GOOD, 2, True, settings) == ProcessReward(2, 0.5, 0.1)
    assert reasoning_reward(GOOD, 512, 0.5, settings) == ProcessReward(1.5, 0.25, 0.2)


def test_zero_format_weight_keeps_length_reward():
    settings = P2RSettings.from_mapping({"perception": {"format_weight": 0}})
    assert perception_reward(GOOD, 200, True, settings) == ProcessReward(1, 0, 0.2)


def test_each_process_and_length_reward_can_be_disabled():
    no_perception = P2RSettings.from_mapping({"perception": {"enabled": False}})
    assert perception_reward(GOOD, 200, True, no_perception) == NO_REWARD
    assert reasoning_reward(GOOD, 400, 1.0, no_perception).total == pytest.approx(2.2)

    no_reasoning = P2RSettings.from_mapping({"reasoning": {"enabled": False}})
    assert reasoning_reward(GOOD, 400, 1.0, no_reasoning) == NO_REWARD
    assert perception_reward(GOOD, 200, True, no_reasoning).total == pytest.approx(2.2)

    no_length = replace(DEFAULT, length_reward=False)
    assert perception_reward(GOOD, 200, True, no_length) == ProcessReward(1, 1, 0)
    assert reasoning_reward(GOOD, 400, 1.0, no_length) == ProcessReward(1, 1, 0)
