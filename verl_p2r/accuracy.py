# SPDX-License-Identifier: Apache-2.0
"""The accuracy of an answer by its problem type: R_acc of the reasoning process.

Each of the five problem types has two comparisons. The lenient default compares what the answers mean; `strict`
compares as Video-R1's reward does, for numbers that can be compared with its own. `register_problem_type` adds more
types.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeGuard, TypeVar

from verl_p2r.answers.normal import normal
from verl_p2r.answers.numbers import read_number, read_quantity
from verl_p2r.answers.options import LETTERS, Options, read_place, same_choice
from verl_p2r.answers.strict import STRICT_SCORERS, closeness
from verl_p2r.answers.texts import MAX_WORDS, text_similarity, transcription_accuracy
from verl_p2r.registry import Registry
from verl_p2r.template import inside
from verl_p2r.visible import is_visible

__all__ = [
    "MAX_WORDS",
    "PROBLEM_TYPES",
    "Scorer",
    "answer_accuracy",
    "answer_text",
    "is_problem_type",
    "problem_types",
    "read_number",
    "read_option",
    "register_problem_type",
]

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
"""The five problem types of the paper, as the records spell them; `problem_types` also lists added ones."""

Scorer = Callable[[str, str, Sequence[str]], float]
"""Takes the texts of prediction and solution, both non-empty, and the row's options; returns a number in [0, 1]."""

S = TypeVar("S", bound=Scorer)

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
        problem_type: One of `problem_types()`, spelled exactly.
        prediction: The text of the response's answer, with or without its `<answer>` tags.
        solution: The ground truth, with or without its `<answer>` tags.
        strict: Compare as Video-R1 does: choices by their stripped text; numbers only if both or neither has a `.` or
            `,`, commas removed, read by `float`. No effect on a registered problem type.
        options: The row's options (`A. text` or plain text), used by the lenient multiple choice and by registered
            types. With options, a prediction may be an option's own text, and truths and predictions may use the
            options' own labels, such as `2` of `2. red`. Without them only letters or equal texts match.

    Returns:
        The accuracy, a float in [0, 1].

    Edge rules of the lenient comparison [ours]:
        An answer is normalised first: markdown, quotes, `\\boxed{}`, TeX, CJK punctuation, "The answer is". An answer
        with more than one option, or with a label and another option's text, names none. A unit, currency or `%` may be
        missing on one side; two units must be equal; nothing is converted, so `50%` is 50 and not 0.5. Text after a
        number that is not a known unit (`16π`, `3 pairs`) must follow both numbers. Texts with a digit that are not a
        single number (`10:30`, `5-6`) match if they are equal. A predicted number equal to the true one has regression
        accuracy 1, even if the true one is 0.

    Edge rules of both comparisons:
        A prediction or solution that is empty, invisible, not a string or unreadable scores 0 [ours]. So does a number
        that is not finite, except that strict keeps Video-R1's infinity = infinity for numerical answers. Strict
        regression scores NaN and infinity 0, where Video-R1's clipping turns NaN into 1 [ours], and keeps its formula
        for a true value of 0: even a predicted 0 then scores 0. Of longer texts only the first 1,024 words are
        compared, and of free-form words only the first 100 characters [ours]. An untagged solution is compared as it
        is, where Video-R1 finds an empty one [ours].

    Raises:
        ValueError: The problem type is unknown, or a registered scorer returns a number outside [0, 1].

    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>")
    1.0
    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>", strict=True)
    0.0
    >>> answer_accuracy("numerical", "1,234.0 m", "1234"), answer_accuracy("numerical", "5 kg", "5 g")
    (1.0, 0.0)
    >>> answer_accuracy("OCR", "no parking hear", "no parking here today")
    0.5
    """
    scorer = _SCORERS.find(problem_type)
    if scorer is None:
        raise ValueError(
            f"unknown problem type {problem_type!r}: use one of {', '.join(map(repr, problem_types()))}, spelled "
            "exactly so, or register it with verl_p2r.accuracy.register_problem_type"
        )
    if not isinstance(prediction, str) or not isinstance(solution, str):
        return 0.0
    prediction, solution = answer_text(prediction), answer_text(solution)
    if not prediction or not solution:
        return 0.0
    if problem_type in STRICT_SCORERS:
        accuracy = (
            STRICT_SCORERS[problem_type](prediction, solution) if strict else scorer(prediction, solution, options)
        )
        return min(1.0, max(0.0, accuracy))
    accuracy = float(scorer(prediction, solution, options))
    if not 0 <= accuracy <= 1:
        raise ValueError(f"the scorer of problem type {problem_type!r} returned {accuracy}: return a number in [0, 1]")
    return accuracy


def register_problem_type(name: str) -> Callable[[S], S]:
    """Register a scorer as a new problem type, which records may then use.

    A complete example is `examples/extend/my_problem_type.py`.

    The module that uses this decorator must be imported by every process that reads records. An installed package
    should use an entry point of the group `verl_p2r.problem_types` instead, which the training workers and
    `verl-p2r-data` find by themselves, for example `"time span" = "my_package.types:time_span"`.

    Args:
        name: The problem type, as records spell it.

    Returns:
        A decorator for a function `(prediction, solution, options) -> float`. It gets the texts of both answers without
        their tags, never empty, and must return a number in [0, 1].

    Raises:
        ValueError: Another scorer has this name.
    """

    def register(scorer: S) -> S:
        _SCORERS.register(name, scorer)
        return scorer

    return register


def problem_types() -> tuple[str, ...]:
    """Return every known problem type: the five of the paper, then the added ones.

    Raises:
        ValueError: An installed package adds a problem type whose name is taken.
    """
    return _SCORERS.names()


def is_problem_type(name: object) -> TypeGuard[str]:
    """Tell whether a value is the name of a known problem type.

    >>> is_problem_type("OCR"), is_problem_type("ocr"), is_problem_type(["OCR"])
    (True, False, False)
    """
    return name in _SCORERS


def answer_text(text: str) -> str:
    """Return the stripped content of a text's first `<answer>…</answer>`, or the whole stripped text without one.

    >>> answer_text("<answer> A </answer>"), answer_text(" A ")
    ('A', 'A')
    """
    return inside(text, "answer")


def read_option(text: str, labels: dict[str, str] | None = None) -> str | None:
    """Read which option an answer names, as its label.

    Args:
        text: The answer: `A`, `(A)`, `A.`, `A) text`, `a: text`, "The answer is A", or an option's own text.
        labels: Label → the option's text; None or empty if the options are unknown.

    Returns:
        The label, or None if the text names no option, more than one, or a label with another option's text.

    >>> read_option("b) a red ball"), read_option("a red ball"), read_option("A. B. C.")
    ('B', None, None)
    >>> read_option("a red ball", {"A": "a blue ball", "B": "a red ball"})
    'B'
    """
    options = Options.read([f"({label}) {text}" for label, text in (labels or {}).items()])
    place = read_place(text, options)
    return None if place is None else (options.labels or LETTERS)[place]


def _multiple_choice(prediction: str, solution: str, options: Sequence[str]) -> float:
    return float(same_choice(prediction, solution, options))


def _numerical(prediction: str, solution: str, _options: Sequence[str]) -> float:
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


def _transcription(prediction: str, solution: str, _options: Sequence[str]) -> float:
    return transcription_accuracy(prediction, solution) if is_visible(prediction) and is_visible(solution) else 0.0


def _free_form(prediction: str, solution: str, _options: Sequence[str]) -> float:
    return text_similarity(prediction, solution)


def _regression(prediction: str, solution: str, _options: Sequence[str]) -> float:
    predicted, true = read_quantity(prediction), read_quantity(solution)
    if predicted is None or true is None or not predicted.matches(true):
        return 0.0
    return 1.0 if predicted.value == true.value else closeness(predicted.value, true.value)


_SCORERS: Registry[Scorer] = Registry(
    "problem type",
    "verl_p2r.problem_types",
    {
        "multiple choice": _multiple_choice,
        "numerical": _numerical,
        "OCR": _transcription,
        "free-form": _free_form,
        "regression": _regression,
    },
)
