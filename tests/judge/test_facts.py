# SPDX-License-Identifier: Apache-2.0
"""Facts as parquet returns them, invalid facts, and texts compared word by word."""

import numpy as np
import pytest

from verl_p2r.judge.facts import Fact, contains, states, words


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
def test_fact_parses_values_read_from_parquet(value, fact):
    assert Fact.parse(value) == fact
    assert Fact.parse_all(np.array([value, value], dtype=object)) == (fact, fact)


@pytest.mark.parametrize("values", [None, [], (), np.array([], dtype=object)])
def test_empty_facts_parse_as_none(values):
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
def test_facts_that_are_not_a_list_are_refused(values):
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
def test_words_folds_case_punctuation_and_width(text, folded):
    assert words(text) == folded


def test_contains_takes_folded_words():
    assert contains(words("A red ball"), "RED ball")
    assert not contains(words("A reddish ball"), "red")


@pytest.mark.parametrize(
    ("text", "phrase", "stated"),
    [
        # Chinese
        ("画面中一个红色的球向左滚动。", "红色的球", True),
        ("画面中一个红色的球向左滚动。", "红色 的 球", True),
        ("画面中一个红色的球向左滚动。", "蓝色的球", False),
        ("画面中一个红色的球向左滚动。", "红球", False),
        ("粉红色", "红色", True),  # a phrase is found anywhere: exclude 粉红
        ("球是紅色的", "红色", False),  # another character
        ("球は赤い", "赤い", True),
        ("２个球", "2个球", True),
        # adjacent numbers stay whole, with sign, decimals and thousands
        ("3个球", "3", True),
        ("13个球", "3", False),
        ("3.5米", "3", False),
        ("3.5米", "5", False),
        ("3．5米", "3.5", True),
        ("气温-3度", "-3", True),
        ("气温-3度", "3", False),
        ("气温−3度", "-3", True),
        ("气温－3度", "-3", True),
        ("从3-5个", "5", True),
        ("从3-5个", "-5", False),
        ("1,234个", "1234", True),
        ("第3个", "3", True),
        # adjacent Latin words stay whole
        ("一台iPhone手机", "iPhone", True),
        ("一台iPhone手机", "Phone", False),
        ("T恤", "t恤", True),
        # Japanese, with half-width kana and voiced marks
        ("赤いボールが左に転がる。", "赤いボール", True),
        ("赤いﾎﾞｰﾙが", "ボール", True),
        ("ハケ", "ハゲ", False),
        # Korean: particles are attached to words
        ("빨간 공이 굴러간다", "빨간 공", True),
        ("빨간 공이 굴러간다", "파란 공", False),
        ("공원에서", "공", True),  # found anywhere, as in Chinese
        # Thai, Lao, Khmer, Burmese: a mark belongs to its letter
        ("ลูกบอลสีแดงกลิ้งไปทางซ้าย", "สีแดง", True),
        ("ลูกบอลสีแดงกลิ้งไปทางซ้าย", "สีเขียว", False),
        ("ไม้", "ไม่", False),
        ("กี", "ก", False),
        ("ໝາກບານສີແດງ", "ສີແດງ", True),
        ("បាល់ក្រហម", "ក្រហម", True),
        ("ဘောလုံးနီ", "နီ", True),
        # scripts with spaces: words stay whole, vowel signs count, optional points do not
        ("एक लाल गेंद", "लाल", True),
        ("एक लाल गेंद", "लल", False),
        ("एक लालच", "लाल", False),
        ("كُرَة حَمْرَاء", "كرة حمراء", True),
        ("كـــرة", "كرة", True),
        ("красный мяч", "красный", True),
        ("прекрасный мяч", "красный", False),
        ("Cafe\u0301 zu", "café", True),
    ],
)
def test_phrases_are_matched_in_any_script(text, phrase, stated):
    assert states(text, phrase) is stated


def test_excluded_phrase_is_found_inside_unspaced_text():
    fact = Fact.parse({"state": "红色", "not": ["粉红色", "蓝色"]})
    assert fact.excludes == ("粉红色", "蓝色")
    with pytest.raises(ValueError, match="nothing passes"):
        Fact.parse({"state": "粉红色", "not": ["红色"]})


@pytest.mark.parametrize(("text", "phrase"), [("3² m", "32"), ("10³", "103"), ("1½ m", "11"), ("3①", "31")])
def test_superscripts_and_fractions_are_not_read_as_digits(text, phrase):
    assert not states(text, phrase)
    assert states(text, text)
