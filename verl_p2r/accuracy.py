# SPDX-License-Identifier: Apache-2.0
"""How right an answer is, by problem type: R_acc of the reasoning process.

Five problem types, two readings of each: the lenient default compares what the answer says; `strict` compares as
Video-R1's reward does, so that numbers can be set beside its own. The lenient readings are in `answer_normal` (one
normaliser for all), `answer_options`, `answer_numbers` and `answer_texts`.
"""

import math
import re
from collections.abc import Callable, Sequence

from verl_p2r.answers.normal import normal
from verl_p2r.answers.numbers import read_number, read_quantity
from verl_p2r.answers.options import LETTERS, Options, read_place, same_choice
from verl_p2r.answers.texts import MAX_WORDS, text_similarity, transcription_accuracy
from verl_p2r.template import inside
from verl_p2r.visible import is_visible

__all__ = ["MAX_WORDS", "PROBLEM_TYPES", "answer_accuracy", "answer_text", "read_number", "read_option"]

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
"""The five problem types, as the records spell them."""

_DIGIT = re.compile(r"\d")


def answer_accuracy(
    problem_type: str, prediction: str, solution: str, *, strict: bool = False, options: Sequence[str] = ()
) -> float:
    """Score one answer against the ground truth by its problem type.

    R_acc,R (arXiv 2511.11113, Eq. 5), with the comparisons of Video-R1 (arXiv 2503.21776):

        multiple choice   1 if the option is the same
        numerical         1 if the values are equal after rounding to 2 places
        OCR               1 − word error rate
        free-form         (F₁ ROUGE-1 + F₁ ROUGE-2 + F₁ ROUGE-L) / 3, with stemming
        regression        1 − (|pred − true| + 1e-9) / (|true| + 1e-9)

    all clipped to [0, 1].

    Args:
        problem_type: one of the five names above, spelled exactly so.
        prediction: the text of the response's answer; its `<answer>` tags may still be there.
        solution: the ground truth, with or without its `<answer>` tags.
        strict: compare as Video-R1 does: choices by their stripped text; numbers only when both or neither has a `.`
            or `,`, commas removed, read by `float`.
        options: the row's options (`A. text` or plain text), used by the lenient multiple choice only: a prediction
            may then be the option's own text, and truths and predictions may use the options' own labels, such as
            `2` of `2. red`. Without them only letters, or texts that are equal, match.

    Returns:
        The accuracy, a float in [0, 1].

    Edge rules of the lenient comparison [ours]:
        An answer is normalised first: markdown, quotes, `\\boxed{}`, TeX, CJK punctuation, "The answer is". An answer
        of more than one option, or of a label beside another option's text, names none. A unit, currency or `%` may be
        missing on one side; two units must be the same; nothing is converted, so `50%` is 50 and not 0.5. What stands
        behind a number and is not a known unit (`16π`, `3 pairs`) must stand behind both. Texts with a digit that are
        not one number (`10:30`, `5-6`) match when they are equal. A predicted number that equals the true one has
        regression accuracy 1, also for a true 0.

    Edge rules of both:
        An empty prediction or solution, one of nothing visible, one that is not a string, and one that cannot be read
        score 0 [ours]; so does a number that is not finite, except that strict keeps Video-R1's infinity = infinity for
        numerical answers. Strict regression scores NaN and infinity 0, where Video-R1's clipping turns NaN into 1
        [ours], and keeps its formula also for a true value of 0: even a predicted 0 then scores 0. Longer texts than
        1,024 words are compared on their first 1,024, and free-form words on their first 100 characters [ours]. An
        untagged solution is compared as it is, where Video-R1 finds an empty one [ours].

    Raises:
        ValueError: the problem type is none of the five.

    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>")
    1.0
    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>", strict=True)
    0.0
    >>> answer_accuracy("numerical", "1,234.0 m", "1234"), answer_accuracy("numerical", "5 kg", "5 g")
    (1.0, 0.0)
    >>> answer_accuracy("OCR", "no parking hear", "no parking here today")
    0.5
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"unknown problem type {problem_type!r}: "
            f"use one of {', '.join(map(repr, PROBLEM_TYPES))}, spelled exactly so"
        )
    if not isinstance(prediction, str) or not isinstance(solution, str):
        return 0.0
    prediction, solution = answer_text(prediction), answer_text(solution)
    if not prediction or not solution:
        return 0.0
    if problem_type == "multiple choice" and not strict:
        return float(same_choice(prediction, solution, options))
    scorer = (_STRICT if strict else _LENIENT)[problem_type]
    return min(1.0, max(0.0, scorer(prediction, solution)))


def answer_text(text: str) -> str:
    """Return what stands in the first `<answer>…</answer>` of a text, or the whole text when there is none, stripped.

    >>> answer_text("<answer> A </answer>"), answer_text(" A ")
    ('A', 'A')
    """
    return inside(text, "answer")


def read_option(text: str, labels: dict[str, str] | None = None) -> str | None:
    """Read which option an answer names, as its label.

    Args:
        text: the answer: `A`, `(A)`, `A.`, `A) text`, `a: text`, "The answer is A", or an option's own text.
        labels: label → the option's text; None or empty when the options are not known.

    Returns:
        The label, or None when the text names no option, more than one, or a label beside another option's text.

    >>> read_option("b) a red ball"), read_option("a red ball"), read_option("A. B. C.")
    ('B', None, None)
    >>> read_option("a red ball", {"A": "a blue ball", "B": "a red ball"})
    'B'
    """
    options = Options.read([f"({label}) {text}" for label, text in (labels or {}).items()])
    place = read_place(text, options)
    return None if place is None else (options.labels or LETTERS)[place]


def _strict_choice(prediction: str, solution: str) -> float:
    return float(prediction == solution)


def _strict_numerical(prediction: str, solution: str) -> float:
    if _has_point(prediction) != _has_point(solution):
        return 0.0
    predicted, true = _read_float(prediction), _read_float(solution)
    return 0.0 if predicted is None or true is None else float(round(predicted, 2) == round(true, 2))


def _strict_regression(prediction: str, solution: str) -> float:
    return _closeness(_read_float(prediction), _read_float(solution))


def _has_point(text: str) -> bool:
    return "." in text or "," in text


def _read_float(text: str) -> float | None:
    """Read a number as Video-R1 does: commas out, then whatever `float` accepts."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _closeness(predicted: float | None, true: float | None) -> float:
    if predicted is None or true is None or not math.isfinite(predicted) or not math.isfinite(true):
        return 0.0
    return 1 - (abs(predicted - true) + 1e-9) / (abs(true) + 1e-9)


def _numerical(prediction: str, solution: str) -> float:
    predicted, true = read_quantity(prediction), read_quantity(solution)
    if predicted is None and true is None:
        return float(_same_figures(prediction, solution))
    if predicted is None or true is None or not predicted.matches(true):
        return 0.0
    return float(round(predicted.value, 2) == round(true.value, 2))


def _same_figures(prediction: str, solution: str) -> bool:
    """Tell whether two texts that are not one number, such as 10:30, are the same text with a digit in it."""
    one, other = (normal(text).casefold().rstrip(" .") for text in (prediction, solution))
    return one == other and _DIGIT.search(one) is not None


def _regression(prediction: str, solution: str) -> float:
    predicted, true = read_quantity(prediction), read_quantity(solution)
    if predicted is None or true is None or not predicted.matches(true):
        return 0.0
    return 1.0 if predicted.value == true.value else _closeness(predicted.value, true.value)


def _transcription(prediction: str, solution: str) -> float:
    return transcription_accuracy(prediction, solution) if is_visible(prediction) and is_visible(solution) else 0.0


def _strict_transcription(prediction: str, solution: str) -> float:
    return transcription_accuracy(prediction, solution, strict=True)


def _strict_free_form(prediction: str, solution: str) -> float:
    return text_similarity(prediction, solution, strict=True)


_STRICT: dict[str, Callable[[str, str], float]] = {
    "multiple choice": _strict_choice,
    "numerical": _strict_numerical,
    "OCR": _strict_transcription,
    "free-form": _strict_free_form,
    "regression": _strict_regression,
}
_LENIENT: dict[str, Callable[[str, str], float]] = {
    "numerical": _numerical,
    "OCR": _transcription,
    "free-form": text_similarity,
    "regression": _regression,
}
