# SPDX-License-Identifier: Apache-2.0
"""Answer accuracy: a table of cases per problem type, slow references, and hostile inputs."""

import json
import random

import numpy as np
import pytest
from paths import TABLES

from verl_p2r.accuracy import MAX_WORDS, PROBLEM_TYPES, answer_accuracy, answer_text, read_number, read_option

CASES = json.loads((TABLES / "accuracy.json").read_text(encoding="utf-8"))
MEGABYTE = 1_000_000


@pytest.mark.parametrize("mode", ["lenient", "strict"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['problem_type']}-{c['prediction']!a}-{c['solution']!a}")
def test_each_accuracy_case_has_expected_score(case, mode):
    score = answer_accuracy(
        case["problem_type"],
        case["prediction"],
        case["solution"],
        strict=mode == "strict",
        options=case.get("options", ()),
    )
    assert score == pytest.approx(case[mode], abs=1e-8), case["source"]


def test_case_table_covers_every_problem_type_and_outcome():
    for problem_type in PROBLEM_TYPES:
        for mode in ("lenient", "strict"):
            scores = {case[mode] for case in CASES if case["problem_type"] == problem_type}
            assert 0 in scores
            assert max(scores) >= 2 / 3


def test_answer_tags_do_not_change_score():
    for case in CASES:
        if not case["prediction"] or "<" in case["prediction"] + case["solution"] or not case["solution"]:
            continue
        for strict in (False, True):
            bare, tagged = (
                answer_accuracy(
                    case["problem_type"],
                    wrap.format(case["prediction"]),
                    wrap.format(case["solution"]),
                    strict=strict,
                    options=case.get("options", ()),
                )
                for wrap in ("{}", "text <answer>\n{} </answer> more <answer>x</answer>")
            )
            assert bare == tagged, case


@pytest.mark.parametrize("problem_type", ["ocr", "Numerical", "free form", "math", "", None, 3, ["OCR"]])
def test_unknown_problem_type_error_lists_known_types(problem_type):
    with pytest.raises(ValueError, match="unknown problem type") as error:
        answer_accuracy(problem_type, "A", "A")
    assert all(repr(name) in str(error.value) for name in PROBLEM_TYPES)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("value", [None, 5, 2.5, b"A", ["A"]])
def test_non_string_answer_scores_zero(problem_type, strict, value):
    assert answer_accuracy(problem_type, value, "A", strict=strict) == 0
    assert answer_accuracy(problem_type, "A", value, strict=strict) == 0


@pytest.mark.parametrize("options", [None, [], np.array(["A. a cat", "B. a dog"], dtype=object), ("a cat", "a dog")])
def test_options_may_be_none_list_tuple_or_array(options):
    assert answer_accuracy("multiple choice", "(b)", "B", options=options) == 1
    own_text = answer_accuracy("multiple choice", "a dog", "B", options=options)
    assert own_text == (1 if options is not None and len(options) else 0)


def test_non_string_options_do_not_raise():
    assert answer_accuracy("multiple choice", "2", "B", options=[1, 2]) == 1
    assert answer_accuracy("multiple choice", "B", "B", options=[str(i) for i in range(40)]) == 1


HOSTILE = {
    "digits": "9" * MEGABYTE,
    "letters": "a" * MEGABYTE,
    "stemmer": "y" * MEGABYTE,
    "words": "a b " * (MEGABYTE // 4),
    "distinct words": " ".join(map(str, range(MEGABYTE // 7))),
    "rouge words": "a-" * (MEGABYTE // 2),
    "labels": "A. " * (MEGABYTE // 3),
    "brackets": "(" * MEGABYTE,
    "spaces": "A" + " " * MEGABYTE + "x",
    "commas": "1,234" * (MEGABYTE // 5),
    "groups": "1" + " 234" * (MEGABYTE // 4),
    "opening tags": "<answer>" * (MEGABYTE // 8),
    "unit": "5 " + "m" * MEGABYTE,
    "surrogates": "\ud800 " * (MEGABYTE // 2),
    "nulls": "\0" * MEGABYTE,
}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("name", HOSTILE)
def test_megabyte_of_hostile_text_scores_in_range(name, problem_type):
    text = HOSTILE[name]
    for strict in (False, True):
        for prediction, solution in [(text, "5"), ("5", text), (text, text), (text, text[::-1])]:
            assert 0 <= answer_accuracy(problem_type, prediction, solution, strict=strict, options=["5", text]) <= 1


def test_random_texts_score_in_range():
    rng = random.Random(0)
    pieces = [
        "A",
        "b",
        "(",
        ")",
        ".",
        ",",
        " ",
        "\n",
        "3",
        "1e9",
        "-",
        "%",
        "m",
        "/",
        "½",
        "é",
        "\u200b",
        "😀",
        "<answer>",
        "</answer>",
        "nan",
        "inf",
    ]
    for _ in range(3000):
        prediction, solution = ("".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(2))
        for problem_type in PROBLEM_TYPES:
            for strict in (False, True):
                assert 0 <= answer_accuracy(problem_type, prediction, solution, strict=strict) <= 1


def slow_word_errors(reference, hypothesis):
    """Compute the Levenshtein distance over words by its recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        previous, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other)))
    return row[-1]


def test_ocr_equals_a_slow_alignment():
    rng = random.Random(1)
    for _ in range(300):
        reference, hypothesis = (rng.choices("abc", k=rng.randint(1, 12)) for _ in range(2))
        expected = max(0.0, 1 - slow_word_errors(reference, hypothesis) / len(reference))
        assert answer_accuracy("OCR", " ".join(hypothesis), " ".join(reference)) == pytest.approx(expected)


def slow_rouge(reference, hypothesis):
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over words too short to be stemmed."""

    def f1(common, found, wanted):
        return 2 * common / (found + wanted) if common else 0.0

    def ngrams(words, n):
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    scores = []
    for n in (1, 2):
        found, wanted = ngrams(hypothesis, n), ngrams(reference, n)
        scores.append(f1(sum(min(found.count(g), wanted.count(g)) for g in set(found)), len(found), len(wanted)))
    table = [[0] * (len(hypothesis) + 1) for _ in range(len(reference) + 1)]
    for i, word in enumerate(reference):
        for j, other in enumerate(hypothesis):
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
    scores.append(f1(table[-1][-1], len(hypothesis), len(reference)))
    return sum(scores) / 3


def test_free_form_score_equals_rouge_score_library():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    pairs = [
        ("The cats were running quickly, weren't they?", "A cat runs quick; it was running."),
        ("She opens the windows_and doors", "opening a window and the door"),
        ("été 3.14 generalizations oscillators", "generalization oscillate 3 14"),
    ]
    for reference, hypothesis in pairs:
        own = sum(score.fmeasure for score in scorer.score(reference, hypothesis).values()) / 3
        assert answer_accuracy("free-form", hypothesis, reference) == pytest.approx(own, abs=1e-12)
        assert own > 0


def test_free_form_equals_slow_rouge():
    rng = random.Random(2)
    for _ in range(300):
        reference, hypothesis = (rng.choices(["a", "b", "c", "d"], k=rng.randint(1, 12)) for _ in range(2))
        score = answer_accuracy("free-form", " ".join(hypothesis), " ".join(reference))
        assert score == pytest.approx(slow_rouge(reference, hypothesis))


@pytest.mark.parametrize("problem_type", ["OCR", "free-form"])
def test_texts_beyond_word_limit_are_compared_by_their_beginning(problem_type):
    words = [f"w{i}" for i in range(3 * MAX_WORDS)]
    changed = [*words[:MAX_WORDS], *reversed(words[MAX_WORDS:])]
    assert answer_accuracy(problem_type, " ".join(words), " ".join(words)) == 1
    assert answer_accuracy(problem_type, " ".join(changed), " ".join(words)) == 1
    assert answer_accuracy(problem_type, " ".join(words[::-1]), " ".join(words)) < 0.1


def test_regression_equals_its_formula():
    rng = random.Random(3)
    for _ in range(200):
        predicted, true = rng.uniform(-10, 10), rng.uniform(-10, 10)
        error = (abs(predicted - true) + 1e-9) / (abs(true) + 1e-9)
        for strict in (False, True):
            score = answer_accuracy("regression", repr(predicted), repr(true), strict=strict)
            assert score == pytest.approx(max(0.0, 1 - error))


def test_lenient_mode_accepts_plain_numbers_that_strict_accepts():
    rng = random.Random(4)
    for _ in range(300):
        number = f"{rng.uniform(-1e6, 1e6):,.{rng.randint(0, 3)}f}"
        assert answer_accuracy("numerical", number, number, strict=True) == 1
        assert answer_accuracy("numerical", number, number) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<answer>a</answer><answer>b</answer>", "a"), ("<answer>a\nb</answer>", "a\nb"), (" a ", "a"), ("", "")],
)
def test_answer_text_takes_the_first_block(text, expected):
    assert answer_text(text) == expected


def test_read_number_refuses_numbers_beyond_length_limit():
    assert read_number("1" + "0" * 200) == 1e200
    assert read_number("0" * 300 + "1") is None


@pytest.mark.parametrize(
    ("options", "text", "letter"),
    [
        (["C. x", "D. y"], "x", "C"),  # the options' own labels
        (["C. x", "D. y"], "A", None),
        (["A.", "B. x"], "B. x", "B"),  # one option lost its text
        (["A. x", "A. y"], "A. y", "B"),  # labels that repeat are part of the text
        (["x", "B. y"], "x", "A"),  # as are labels on some only
        (["P", "Q", "R"], "q", "B"),  # bare letters are texts
        (["A", "B"], "b", "B"),
    ],
)
def test_options_use_own_labels_or_letters_from_a(options, text, letter):
    assert answer_accuracy("multiple choice", text, letter or "C", options=options) == (letter is not None)


def test_read_option_returns_none_without_match():
    assert read_option("") is None
    assert read_option("!") is None
    assert read_option("E", {"A": "x"}) is None


def test_bare_letter_is_read_as_label_before_option_text():
    assert read_option("B", {"A": "B", "B": "C"}) == "B"
