# SPDX-License-Identifier: Apache-2.0
"""Settings: the paper's defaults, one switch per ablation, and errors that name the place and the remedy."""

import dataclasses
import re

import pytest
from omegaconf import OmegaConf

from verl_p2r.settings import JudgeSettings, LengthBand, P2RSettings, ProcessSettings

PAPER = {
    "strict": False,
    "length_reward": True,
    "separate": None,
    "segment_weighting": "token",
    "cross_credit": 0.0,
    "perception": {
        "enabled": True,
        "accuracy_weight": 1.0,
        "format_weight": 1.0,
        "length": {"minimum": 128, "maximum": 320, "reward": 0.2},
    },
    "reasoning": {
        "enabled": True,
        "accuracy_weight": 1.0,
        "format_weight": 1.0,
        "length": {"minimum": 320, "maximum": 512, "reward": 0.2},
    },
    "judge": {
        "name": "facts",
        "max_no_verdict_share": 0.05,
        "health_check": True,
        "soft": False,
        "guards": {"answer_only": False, "copied_question": False},
        "second_answer": {"max_tokens": 64, "think": False},
        "kwargs": {},
    },
}


def test_default_settings_equal_paper():
    assert dataclasses.asdict(P2RSettings()) == PAPER
    assert P2RSettings.from_mapping({}) == P2RSettings.from_mapping(PAPER) == P2RSettings()


def test_omegaconf_node_reads_like_a_dict():
    node = OmegaConf.create({**PAPER, "judge": {"name": "m:C", "kwargs": {"urls": ["a", "b"], "retry": {"times": 3}}}})
    judge = P2RSettings.from_mapping(node).judge
    assert judge == JudgeSettings("m:C", kwargs={"urls": ["a", "b"], "retry": {"times": 3}})
    assert type(judge.kwargs) is type(judge.kwargs["retry"]) is dict
    assert type(judge.kwargs["urls"]) is list


def test_partial_mapping_keeps_the_other_defaults():
    settings = P2RSettings.from_mapping({"reasoning": {"length": {"maximum": 600}}})
    assert settings.reasoning == ProcessSettings(LengthBand(320, 600, 0.2))
    assert settings.perception == P2RSettings().perception


@pytest.mark.parametrize(
    ("mapping", "separated"),
    [
        ({}, True),
        ({"separate": True}, True),
        ({"separate": False}, False),  # no separation: R_P + R_R over all tokens
        ({"perception": {"enabled": False}}, False),  # no R_P: GRPO
        ({"reasoning": {"enabled": False}}, False),  # no R_R
        ({"reasoning": {"enabled": False}, "separate": False}, False),
        ({"length_reward": False}, True),  # no R_len
    ],
)
def test_each_ablation_is_one_setting(mapping, separated):
    assert P2RSettings.from_mapping(mapping).separated is separated


def error(mapping, where="algorithm.p2r"):
    with pytest.raises(ValueError) as caught:
        P2RSettings.from_mapping(mapping, where)
    return str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "path", "remedy"),
    [
        ({"strickt": True}, "algorithm.p2r.strickt", "did you mean strict?"),
        ({"perception": {"enable": True}}, "algorithm.p2r.perception.enable", "did you mean enabled?"),
        ({"reasoning": {"length": {"max": 3}}}, "algorithm.p2r.reasoning.length.max", "minimum, maximum, reward"),
        ({"judge": {"kwarg": {}}}, "algorithm.p2r.judge.kwarg", "did you mean kwargs?"),
        ({"zzz": 1}, "algorithm.p2r.zzz", "Known here: strict, length_reward, separate, segment_weighting"),
        ({3: 1}, "algorithm.p2r.3", "Known here"),
    ],
)
def test_unknown_setting_error_gives_path_and_suggestion(mapping, path, remedy):
    message = error(mapping)
    assert message.startswith(f"{path} does not exist")
    assert remedy in message


@pytest.mark.parametrize(
    ("mapping", "path", "remedy"),
    [
        ({"strict": "true"}, "strict", "give true or false"),
        ({"strict": 1}, "strict", "give true or false"),
        ({"strict": None}, "strict", "give true or false"),
        ({"separate": "no"}, "separate", "give true or false"),
        ({"segment_weighting": "tokens"}, "segment_weighting", "use one of token, segment"),
        ({"segment_weighting": ["token"]}, "segment_weighting", "use one of token, segment"),
        ({"cross_credit": "0.5"}, "cross_credit", "give a finite number"),
        ({"cross_credit": -0.5}, "cross_credit", "not negative"),
        ({"cross_credit": float("nan")}, "cross_credit", "give a finite number"),
        ({"cross_credit": 0.5, "separate": False}, "cross_credit", "set cross_credit: 0"),
        ({"cross_credit": 1, "perception": {"enabled": False}}, "cross_credit", "both rewards on"),
        ({"perception": None}, "perception", "give a mapping"),
        ({"perception": True}, "perception", "give a mapping"),
        ({"perception": {"accuracy_weight": "1"}}, "perception.accuracy_weight", "give a finite number"),
        ({"perception": {"accuracy_weight": True}}, "perception.accuracy_weight", "give a finite number"),
        ({"perception": {"accuracy_weight": float("nan")}}, "perception.accuracy_weight", "give a finite number"),
        ({"perception": {"format_weight": float("inf")}}, "perception.format_weight", "give a finite number"),
        ({"perception": {"format_weight": -1}}, "perception.format_weight", "not negative"),
        ({"perception": {"length": [1, 2]}}, "perception.length", "give a mapping"),
        ({"perception": {"length": {"minimum": 1.5}}}, "perception.length.minimum", "give a whole number"),
        ({"perception": {"length": {"minimum": True}}}, "perception.length.minimum", "give a whole number"),
        ({"perception": {"length": {"minimum": -1}}}, "perception.length.minimum", "not negative"),
        ({"perception": {"length": {"reward": -0.2}}}, "perception.length.reward", "not negative"),
        ({"perception": {"length": {"minimum": 400}}}, "perception.length.maximum", "length_reward: false"),
        ({"reasoning": {"accuracy_weight": 0, "format_weight": 0}}, "reasoning.accuracy_weight", "enabled: false"),
        ({"judge": {"name": None}}, "judge.name", "give a text"),
        ({"judge": {"name": " "}}, "judge.name", "name a judge"),
        ({"judge": {"second_answer": {"max_tokens": 0}}}, "judge.second_answer.max_tokens", "a whole number above 0"),
        ({"judge": {"kwargs": None}}, "judge.kwargs", "give a mapping"),
        ({"judge": {"max_no_verdict_share": 5}}, "judge.max_no_verdict_share", "between 0 and 1"),
        ({"judge": {"max_no_verdict_share": -0.1}}, "judge.max_no_verdict_share", "between 0 and 1"),
        (
            {"perception": {"enabled": False}, "reasoning": {"enabled": False}},
            "perception.enabled",
            "switch at least one on",
        ),
        ({"separate": True, "perception": {"enabled": False}}, "separate", "perception.enabled: true"),
        ({"separate": True, "reasoning": {"enabled": False}}, "separate", "reasoning.enabled: true"),
    ],
)
def test_bad_setting_value_error_gives_path_and_remedy(mapping, path, remedy):
    message = error(mapping, where="my.node")
    assert re.match(rf"my\.node\.{re.escape(path)} ", message), message
    assert remedy in message


@pytest.mark.parametrize("node", [None, [], "facts", 3])
def test_settings_node_must_be_a_mapping(node):
    assert error(node).startswith("algorithm.p2r is ")


def test_disabled_process_may_have_zero_weights():
    settings = P2RSettings.from_mapping({"reasoning": {"enabled": False, "accuracy_weight": 0, "format_weight": 0}})
    assert not settings.reasoning.enabled


def test_settings_built_directly_are_checked_too():
    with pytest.raises(ValueError, match="nothing to separate"):
        P2RSettings(separate=True, perception=ProcessSettings(LengthBand(1, 2), enabled=False))
    with pytest.raises(ValueError, match="below minimum"):
        LengthBand(3, 2)


def test_settings_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        P2RSettings().strict = True
