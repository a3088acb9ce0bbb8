# SPDX-License-Identifier: Apache-2.0
"""MMMU's readings, each expected value derived from its published rules by hand."""

import pytest

from verl_p2r.evaluation.mmmu import choice_letter, open_answer_matches

TEN = [f"thing number {i}" for i in range(14)]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),  # the full stop is stripped, "B " is left
        ("(C)", "C"),
        ("K", "K"),  # letters go beyond J
        ("N. thing number 13", "N"),
        ("A. is wrong, it is D. indeed", "D"),  # the last of those with a full stop
        ("Not (A) but (C)", "C"),
        ("A or B", "B"),  # the last " X "
        ("O", None),  # there is no fifteenth option
        ("it must be thing number 3 of all", "D"),  # more than five words: an option's text counts
        ("thing number 3", None),  # few words: it does not
        ("", None),
    ],
)
def test_mmmu_choice_letter_is_read_from_reply(reply, letter):
    assert choice_letter(reply, TEN) == letter


def test_the_last_option_text_wins_and_option_letters_are_ignored():
    options = ["A. red ball", "B. blue box"]
    assert choice_letter("first i saw one red ball, then the blue box", options) == "B"


@pytest.mark.parametrize(
    ("reply", "truth", "right"),
    [
        ("42", "42", True),
        ("The answer is 42", "42", True),
        ("x = 3.14159", "3.14", True),  # numbers are rounded to two places
        ("1,234", "1234", True),
        ("2.5e3 N", "2500", True),
        ("It is 41", "42", False),
        ("the result is a red giant", "red giant", True),  # contained
        ("the result is a giant", "red giant", False),
        ("so the value is b", "b", True),
        ("so the value is bc", "b", False),  # a single letter must stand alone
        ("it equals 5\nso it is 6", "5", True),  # every line has its candidate
        ("", "5", False),
        ("nan", "5", False),
    ],
)
def test_mmmu_open_answers_match_by_published_rules(reply, truth, right):
    assert open_answer_matches(reply, truth) is right
