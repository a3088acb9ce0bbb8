# SPDX-License-Identifier: Apache-2.0
"""`strict` against a reimplementation of Video-R1's reward: equal except for the rows of strict.md."""

import math
import random
import re

import pytest
from paths import ROOT
from rouge_score.rouge_scorer import RougeScorer

from verl_p2r.accuracy import PROBLEM_TYPES, answer_accuracy
from verl_p2r.answers.texts import MAX_WORD_LENGTH, MAX_WORDS

PAGE = (ROOT / "docs" / "reference" / "strict.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([a-zA-Z -]+?) +\| `(.*?)` +\| `(.*?)` +\| (\d) +\| (\d) +\|", PAGE, re.MULTILINE)
ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def inside(text):
    match = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    return match[1].strip() if match else ""


def number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def word_errors(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        previous, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other)))
    return row[-1] / max(1, len(reference))


def video_r1(problem_type, prediction, solution):
    """Compute Video-R1's accuracy reward (arXiv 2503.21776), including its NaN."""
    said, true = inside(prediction), inside(solution)
    if problem_type == "multiple choice":
        return float(said == true)
    if problem_type == "OCR":
        return max(0.0, min(1.0, 1 - word_errors(true.split(), said.split())))
    if problem_type == "free-form":
        return sum(score.fmeasure for score in ROUGE.score(true, said).values()) / 3
    predicted, wanted = number(said), number(true)
    if predicted is None or wanted is None:
        return 0.0
    if problem_type == "numerical":
        points = ["." in text or "," in text for text in (said, true)]
        return float(points[0] == points[1] and round(predicted, 2) == round(wanted, 2))
    error = (abs(predicted - wanted) + 1e-9) / (abs(wanted) + 1e-9)
    return 1 - min(1.0, max(0.0, error))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_each_row_of_strict_page_matches_computed_scores(row):
    problem_type, prediction, solution, theirs, ours = row
    assert video_r1(problem_type, prediction, solution) == pytest.approx(float(theirs), abs=1e-8)
    assert answer_accuracy(problem_type, prediction, solution, strict=True) == pytest.approx(float(ours), abs=1e-8)


def test_strict_page_has_16_rows_of_which_10_differ():
    assert len(ROWS) == 16
    assert sum(theirs != ours for *_, theirs, ours in ROWS) == 10


def test_all_other_tagged_answers_score_as_in_video_r1():
    generator = random.Random(0)
    pieces = ["A", "b", "(", ")", ".", ",", " ", "3", "12", "1e9", "-", "%", "m", "é", "_", "red", "the dogs", "ran"]
    right = 0
    for _ in range(3000):
        said, true = ("".join(generator.choices(pieces, k=generator.randint(1, 6))) for _ in range(2))
        said = true if generator.random() < 0.2 else said
        finite = all(math.isfinite(number(text) or 0) for text in (said, true))
        if not said.strip() or not true.strip() or not finite:
            continue
        for problem_type in PROBLEM_TYPES:
            tagged = f"<think>t</think> <answer>{said}</answer>", f"<answer> {true}\n</answer>"
            expected = video_r1(problem_type, *tagged)
            assert answer_accuracy(problem_type, *tagged, strict=True) == pytest.approx(expected, abs=1e-9), tagged
            right += expected > 0
    assert right > 1000


def test_long_texts_are_truncated_unlike_in_video_r1():
    same, other = ["a"] * MAX_WORDS + ["b"] * MAX_WORDS, ["a"] * MAX_WORDS + ["c"] * MAX_WORDS
    texts = [f"<answer>{' '.join(words)}</answer>" for words in (same, other)]
    assert answer_accuracy("OCR", *texts, strict=True) == 1
    assert 1 - word_errors(other, same) == 0.5
    words = [f"<answer>{'x' * MAX_WORD_LENGTH + end}</answer>" for end in "yz"]
    assert answer_accuracy("free-form", *words, strict=True) == pytest.approx(2 / 3)
    assert video_r1("free-form", *words) == 0


def test_unknown_problem_type_raises_where_video_r1_scores_zero():
    with pytest.raises(ValueError, match="unknown problem type"):
        answer_accuracy("video eval", "<answer>x</answer>", "<answer>x</answer>", strict=True)
