# SPDX-License-Identifier: Apache-2.0
"""Facts as parquet gives them and as they are refused, and texts compared word by word."""

import numpy as np
import pytest

from verl_p2r.facts import Fact, contains, states, words


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ("red", Fact("red")),
        ({"state": "red"}, Fact("red")),
        ({"state": "red", "not": None}, Fact("red")),
        ({"state": "red", "not": []}, Fact("red")),
        ({"state": "red", "not": np.array(["green", "blue"], dtype=object)}, Fact("red", ("green", "blue"))),
        (Fact("red", ("green",)), Fact("red", ("green",))),
    ],
)
def test_fact_parses_what_parquet_gives(value, fact):
    assert Fact.parse(value) == fact
    assert Fact.parse_all(np.array([value, value], dtype=object)) == (fact, fact)


@pytest.mark.parametrize("values", [None, [], (), np.array([], dtype=object)])
def test_no_facts_are_none(values):
    assert Fact.parse_all(values) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "write a text"),
        (None, "write a text"),
        (["red"], "write a text"),
        ({}, "write a text"),
        ({"not": ["red"]}, "write a text"),
        ({"state": "red", "exclude": ["blue"]}, "write a text"),
        ({"state": 3}, "3 is not a text"),
        ({"state": "red", "not": [3]}, "3 is not a text"),
        ({"state": "red", "not": "green"}, "give a list"),
        ("", "holds no word"),
        ("?!", "holds no word"),
        ({"state": "red", "not": [" "]}, "has no word"),
        ({"state": "red", "not": ["RED"]}, "nothing passes"),
        ({"state": "moves left", "not": ["left"]}, "nothing passes"),
    ],
)
def test_bad_fact_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Fact.parse(value)


@pytest.mark.parametrize("values", ["red", {"state": "red"}, 3])
def test_facts_that_are_no_list_are_refused(values):
    with pytest.raises(ValueError, match="give a list"):
        Fact.parse_all(values)


def test_states_ignores_case_space_and_punctuation():
    assert states("The «red»\tball!", "RED BALL")
    assert not states("the red, big ball", "red ball")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("A RED, round ball!", "a red round ball"),
        ("1,234.5 and -3, from 3-5", "1234.5 and -3 from 3 5"),
        ("ｒｅｄ Straße", "red strasse"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_words(text, folded):
    assert words(text) == folded


def test_contains_takes_folded_words():
    assert contains(words("A red ball"), "RED ball")
    assert not contains(words("A reddish ball"), "red")
