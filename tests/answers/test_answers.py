# SPDX-License-Identifier: Apache-2.0
"""Reading answers: the case tables, and properties that hold for any text."""

import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from paths import TABLES

from verl_p2r.accuracy import PROBLEM_TYPES, answer_accuracy
from verl_p2r.answers.normal import MAX_LAYERS, folded, normal, unwrapped
from verl_p2r.answers.number_words import leading_word_number
from verl_p2r.answers.numbers import read_quantity
from verl_p2r.answers.options import Options, read_place
from verl_p2r.answers.texts import text_similarity
from verl_p2r.answers.units import UNITS, read_unit

CASES = [
    case
    for name in ("choice", "number", "text")
    for case in json.loads((TABLES / f"answers_{name}.json").read_text(encoding="utf-8"))
]
PIECES = [
    *(
        "A",
        "b",
        "C",
        "(B)",
        "option ",
        "the answer is ",
        "答案：",
        "选",
        "red",
        "a blue ball",
        "not ",
        " or ",
        ", ",
        ". ",
    ),
    *(
        "3",
        "1/2",
        "½",
        "²",
        "5,000",
        "-",
        "–",
        "e3",
        "×10^3",
        " million",
        "万",
        "%",
        "$",
        "€",
        "kg",
        "π",
        "twelve",
        "三",
    ),
    *(
        "**",
        "*",
        "_",
        "`",
        "```",
        '"',
        "'",
        "\\boxed{",
        "\\text{",
        "\\frac{1}{2}",
        "{",
        "}",
        "$",
        "\\(",
        "\\",
        "^\\circ",
    ),
    *("\n", " ", "\u200b", "\u3164", "\ud800", "😀", "。", "、", "Ｂ", "①", "٣", "# ", "- ", "<answer>", "</answer>"),
]
OPTIONS = ["A. a red ball", "B. a blue ball", "C. a red cube"]


def mixed(generator, longest=8):
    return "".join(generator.choices(PIECES, k=generator.randint(0, longest)))


def accuracy(case, prediction, solution):
    return answer_accuracy(case["problem_type"], prediction, solution, options=case["options"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['problem_type']}-{c['prediction']!a}-{c['solution']!a}"[:80])
def test_each_answer_case_has_expected_score(case):
    score = accuracy(case, case["prediction"], case["solution"])
    assert score == pytest.approx(case["expected"], abs=1e-8), f"{case['why']}: {case['source']}"


def test_case_table_has_right_and_wrong_answers_of_each_problem_type():
    counts = Counter((case["problem_type"], case["expected"] > 0.5) for case in CASES)
    assert all(counts[problem_type, right] >= 5 for problem_type in PROBLEM_TYPES for right in (True, False)), counts
    assert len({case["why"] for case in CASES}) >= 100


def test_choice_and_number_comparison_is_symmetric():
    for case in CASES:
        if case["problem_type"] in ("multiple choice", "numerical"):
            one, other = case["prediction"], case["solution"]
            assert accuracy(case, one, other) == accuracy(case, other, one), case


def test_solution_scored_against_itself_is_correct():
    for case in CASES:
        if case["expected"] == 1:
            threshold = 0.6 if case["problem_type"] == "free-form" else 1
            assert accuracy(case, case["solution"], case["solution"]) >= threshold, case
            assert accuracy(case, case["prediction"], case["prediction"]) >= threshold, case


def test_markup_around_answer_does_not_change_score():
    """Yield each kind of markup around a plain right and a plain wrong answer."""
    dresses = ["**{}**", "`{}`", '"{}"', "\\boxed{{{}}}", "$\\boxed{{\\text{{{}}}}}$", "The answer is {}.", "答案：{}"]
    plain = [
        ("multiple choice", "B", OPTIONS),
        ("multiple choice", "a blue ball", OPTIONS),
        ("numerical", "42", ()),
        ("regression", "42", ()),
        ("free-form", "a blue ball", ()),
    ]
    for problem_type, answer, options in plain:
        for outer in dresses:
            for inner in set(dresses) - {outer}:
                dressed = outer.format(inner.format(answer))
                for solution in (answer, "A" if options else "41"):
                    scores = [answer_accuracy(problem_type, p, solution, options=options) for p in (answer, dressed)]
                    assert scores[0] == pytest.approx(scores[1]), dressed


def test_text_normalisers_are_idempotent():
    generator = random.Random(0)
    texts = [case["prediction"] for case in CASES] + [mixed(generator, 14) for _ in range(3000)]
    for reader in (folded, normal, unwrapped):
        for text in texts:
            once = reader(text)
            if reader is folded:  # folding may produce text that folds again: its callers repeat it
                once = folded(folded(once))
            assert reader(once) == once, (reader, text)


def test_answer_nested_deeper_than_limit_is_empty():
    assert normal("\\text{" * (MAX_LAYERS - 2) + "B" + "}" * (MAX_LAYERS - 2)) == "B"
    assert normal("\\text{" * 100 + "B" + "}" * 100) == ""


@pytest.mark.parametrize("seed", [1, 2])
def test_random_text_scores_in_range_and_matches_at_most_one_option(seed):
    generator = random.Random(seed)
    read = Counter()
    for _ in range(1500):
        one, other = mixed(generator), mixed(generator)
        for problem_type in PROBLEM_TYPES:
            assert 0 <= answer_accuracy(problem_type, one, other, options=OPTIONS) <= 1
        for problem_type in ("multiple choice", "numerical"):
            forth, back = (
                answer_accuracy(problem_type, *pair, options=OPTIONS) for pair in ((one, other), (other, one))
            )
            assert forth == back
        right = [answer_accuracy("multiple choice", one, letter, options=OPTIONS) for letter in "ABC"]
        assert sum(right) <= 1, one
        read["option"] += sum(right)
        read["number"] += read_quantity(one) is not None
    assert min(read["option"], read["number"]) > 20, read


MENTIONS = ["{0}", "({0})", "{0}.", "{0})", "option {0}", "**{0}**", "{0}. {1}", "{1}", "the answer is {0}", "[{0}]"]
MENTIONS += ["\\boxed{{{0}}}", "{0}: {1}", "选{0}", "it is {0}", "{0} - {1}", "Answer: {0}", "{1} ({0})", "maybe {1}"]
JOINTS = [" or ", " and ", ", ", "; ", " / ", "/", "\n", " but maybe ", ". ", ", not ", "? ", ", | ", " vs ", " -> "]
JOINTS += [" -- ", " then ", ", or rather ", "和", "或", "、", "。", " & ", "+", " over ", " instead of ", "... wait, "]
JOINTS += [" (or ", ", i.e. ", " ", " = ", " could also be "]


def test_naming_two_options_counts_as_no_choice():
    generator = random.Random(5)
    texts = [option[3:] for option in OPTIONS]
    for _ in range(6000):
        first, second = generator.sample(range(3), 2)
        one, other = (generator.choice(MENTIONS).format("ABC"[i], texts[i]) for i in (first, second))
        text = one + generator.choice(JOINTS) + other + generator.choice(["", ".", ")", "!", " maybe"])
        assert read_place(text, Options.read(OPTIONS)) is None, text


def test_label_is_accepted_only_with_its_own_option_text():
    for options in (OPTIONS, ["(1) red", "(2) blue"], ["i. red", "ii. blue"], ["A、红色", "B、蓝色"], ["red", "blue"]):
        read = Options.read(options)
        for place, label in enumerate(read.labels):
            for other, text in enumerate(read.texts):
                for form in ("{}. {}", "({}) {}", "{}) {}", "{}: {}", "{}, {}", "**{}.** {}", "The answer is {}. {}"):
                    expected = place if place == other else None
                    assert read_place(form.format(label, text), read) == expected, (options, form, label, text)


def test_number_words_are_read_as_their_value():
    teens = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    ones = re.findall("[a-z]+", f"zero one two three four five six seven eight nine {teens}")
    tens = re.findall("[a-z]+", "twenty thirty forty fifty sixty seventy eighty ninety")
    digits = "零一二三四五六七八九"

    def english(n):
        if n < 20:
            return ones[n]
        if n < 100:
            return tens[n // 10 - 2] + (f"-{ones[n % 10]}" if n % 10 else "")
        if n < 1000:
            return f"{ones[n // 100]} hundred" + (f" and {english(n % 100)}" if n % 100 else "")
        return f"{english(n // 1000)} thousand" + (f" {english(n % 1000)}" if n % 1000 else "")

    def chinese(n):
        if n < 10:
            return digits[n]
        if n < 100:
            return (digits[n // 10] if n >= 20 else "") + "十" + (digits[n % 10] if n % 10 else "")
        rest = "" if n % 100 == 0 else "零" * (n % 100 < 10) + "一" * (10 <= n % 100 < 20) + chinese(n % 100)
        return digits[n // 100] + "百" + rest

    for n in [*range(1000), *range(1000, 1_000_000, 9973)]:
        assert leading_word_number(english(n)) == (n, "")
    for n in range(1000):
        assert leading_word_number(chinese(n)) == (n, ""), chinese(n)


def test_each_unit_may_be_omitted_and_matches_itself():
    for spelling, meant in UNITS.items():
        unit = read_unit(spelling)
        assert unit is not None
        assert unit[0][0] & meant
        assert answer_accuracy("numerical", f"7 {spelling}", "7") == 1, spelling
        assert answer_accuracy("numerical", f"7 {spelling}", f"7 {spelling}") == 1, spelling
        assert answer_accuracy("numerical", f"7 {spelling}", "8") == 0


def test_text_in_scripts_without_spaces_is_compared_by_character():
    assert text_similarity("红色的大球", "红色的球") > text_similarity("蓝色的球", "红色的大球") > 0
    assert text_similarity("빨간 공은", "빨간 공이") > 0.5


HOSTILE = """
from verl_p2r.accuracy import PROBLEM_TYPES, answer_accuracy
floods = ["**a", "*a", "_a", "__", "`", "```", "\\\\frac{", "\\\\frac{a}", "\\\\text{", "}", "$", "(A) ", "A or ", "'"]
floods += ['"', "# ", "> ", "答案是", "the answer is ", "So, ", "final ", "½", "1/2 ", "(", "A.", "option A ", "红"]
floods += ["a\\u0301", "not ", "\\\\", "^", "- ", "\\n", " ", "it is ", "①", "\\u200b", "1,000", "9", "e", "million "]
floods += ["三", "one hundred "]
for flood in floods:
    text = flood * (500_000 // len(flood))
    for kind in PROBLEM_TYPES:
        answer_accuracy(kind, text, "B", options=["A. red", "B. a blue ball"])
        answer_accuracy(kind, "B " + text + "x", text[:9000], options=["A. red", "B. a blue ball"])
"""


@pytest.mark.slow
def test_half_a_megabyte_of_hostile_answers_is_read_in_linear_time():
    # Linear code takes minutes at most; quadratic code would take hours for a single text, so no time is asserted.
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=900)
