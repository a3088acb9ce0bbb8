# SPDX-License-Identifier: Apache-2.0
"""Ground truths that nothing can match are refused, and no others."""

import pytest

from verl_p2r.accuracy import PROBLEM_TYPES, answer_accuracy
from verl_p2r.data.errors import RowError
from verl_p2r.data.truths import AGREEMENT, UNUSABLE, check_truth

LETTERED = ["A. red", "B. blue", "C. red"]
PLAIN = ["red", "blue"]


@pytest.mark.parametrize(
    ("problem_type", "solution", "options"),
    [
        ("multiple choice", "<answer>B</answer>", LETTERED),
        ("multiple choice", "(b)", LETTERED),
        ("multiple choice", "B. blue", LETTERED),
        ("multiple choice", "blue", LETTERED),
        ("multiple choice", "B", PLAIN),
        ("multiple choice", "Blue.", PLAIN),
        ("multiple choice", "D", []),  # the options stand in the question
        ("multiple choice", "the red one", []),
        ("numerical", "3", []),
        ("numerical", "<answer>-1,234.50 kg</answer>", []),
        ("numerical", "3", LETTERED),  # only multiple choice has options
        ("regression", "0.5", []),
        ("OCR", "No Parking", []),
        ("OCR", "红色的球", []),
        ("free-form", "red", []),  # one word: ROUGE-1 and ROUGE-L of 1, no pair of words; 2/3
        ("free-form", "A red ball rolls.", []),
    ],
)
def test_matchable_ground_truths_pass_check(problem_type, solution, options):
    check_truth(problem_type, solution, options)


@pytest.mark.parametrize(
    ("problem_type", "solution", "options", "message"),
    [
        ("multiple choice", "D", LETTERED, "names none of the 3 options"),
        ("multiple choice", "green", PLAIN, "names none of the 2 options"),
        ("multiple choice", "<answer></answer>", LETTERED, "names none of the 3 options"),
        ("multiple choice", "A. blue", LETTERED, "names none of the 3 options"),
        ("numerical", "<answer> </answer>", [], "scores 0 against itself as numerical"),
        ("numerical", "inf", [], "scores 0 against itself as numerical"),
        ("numerical", "several", [], "scores 0 against itself as numerical"),
        ("regression", "unknown", [], "scores 0 against itself as regression"),
        ("free-form", "…", [], "scores 0 against itself as free-form"),
    ],
)
def test_unmatchable_ground_truths_are_refused_with_reason(problem_type, solution, options, message):
    with pytest.raises(RowError, match=message) as caught:
        check_truth(problem_type, solution, options, "reward_model.ground_truth")
    assert (caught.value.field, caught.value.reason) == ("reward_model.ground_truth", UNUSABLE)
    assert str(caught.value).startswith("field reward_model.ground_truth is '")


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("solution", ["1/2", "10:30", "$18", "twelve", "0", "红色的球", "B", "50%", "yes", "x" * 5000])
def test_ground_truth_check_agrees_with_scorer(problem_type, solution):
    own = answer_accuracy(problem_type, solution, solution)
    usable = own >= (1 if problem_type in ("multiple choice", "numerical") else AGREEMENT)
    try:
        check_truth(problem_type, solution)
    except RowError:
        assert not usable
    else:
        assert usable


@pytest.mark.parametrize("options", [LETTERED, PLAIN, ["1. red", "2. blue"], ["C. red", "D. blue"], ["A) red", "B) b"]])
@pytest.mark.parametrize("truth", [*list("ABCDE"), "red", "blue", "(a)", "1", "b)"])
def test_accepted_choice_ground_truth_matches_an_option(options, truth):
    # The check has a short cut; the scorer is asked here for every option.
    matched = any(answer_accuracy("multiple choice", option, truth, options=options) == 1 for option in options)
    try:
        check_truth("multiple choice", truth, options)
    except RowError:
        assert not matched
    else:
        assert matched
