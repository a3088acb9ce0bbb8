# SPDX-License-Identifier: Apache-2.0
"""How right an answer is, by problem type: R_acc of the reasoning process.

Five problem types, two readings of each: the lenient default compares what the answer says; `strict` compares as
Video-R1's reward does, so that numbers can be set beside its own.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

import jiwer

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
"""The five problem types, as the records spell them."""

# WER and ROUGE-L take time proportional to the product of the two lengths; these bounds keep any input fast [ours].
MAX_WORDS = 1024
"""OCR and free-form answers are compared on their first so many words."""
MAX_WORD_LENGTH = 100
"""Free-form words are compared on their first so many characters: older releases of the stemmer recurse over them."""
MAX_NUMBER_LENGTH = 256
"""A longer text is not read as a number by the lenient comparison."""

_THOUSANDS = r"\d{1,3}(?:(?:,\d{2,3})*,\d{3}|(?:[ \u00a0\u202f]\d{3})+)"
_NUMBER = rf"(?P<number>[+-]?\s*(?:(?:{_THOUSANDS}|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
_UNIT_ATOM = r"(?:[°%‰$€£¥]|[^\W\d_])+(?:\^?[23²³])?"
_UNIT = rf"(?P<unit>(?:(?:square|cubic|sq|cu)\.?\s+)?{_UNIT_ATOM}(?:\s*(?:/|\bper\b)\s*{_UNIT_ATOM})?)"
_QUANTITY = re.compile(rf"{_NUMBER}(?:\s*{_UNIT})?\s*\.?")
# Words that change the number before them, so they are no unit: "3 million" is not 3.
_MULTIPLIERS = {"k", "mn", "bn", "dozen", "hundred", "thousand", "million", "billion", "trillion"}

_LETTER = re.compile(r"(?:\((?P<round>[a-z])\)|\[(?P<square>[a-z])\]|(?P<plain>[a-z]))", re.IGNORECASE)
_LABELLED = re.compile(rf"{_LETTER.pattern}(?P<mark>\s*[.:)])?(?:\s+(?P<text>\S.*))?", re.IGNORECASE | re.DOTALL)


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
            may then be the option's own text. Without them only letters, or texts that are equal, match.

    Returns:
        The accuracy, a float in [0, 1].

    Edge rules:
        An empty prediction or solution, one that is not a string, and one that cannot be read score 0 [ours]; so does
        a number that is not finite, except that strict keeps Video-R1's infinity = infinity for numerical answers.
        Strict regression too scores NaN and infinity 0, where Video-R1's clipping turns NaN into 1 [ours].
        Regression keeps Video-R1's formula also for a true value of 0: even a predicted 0 then scores 0.
        Longer texts than 1,024 words are compared on their first 1,024 [ours]. ROUGE sees the letters
        a-z and digits only.

    Raises:
        ValueError: the problem type is none of the five.

    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>")
    1.0
    >>> answer_accuracy("multiple choice", "(b)", "<answer>B</answer>", strict=True)
    0.0
    >>> answer_accuracy("numerical", "1,234.0 m", "1234")
    1.0
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
    if problem_type == "multiple choice":
        return _multiple_choice(prediction, solution, strict, options)
    return min(1.0, max(0.0, _SCORERS[problem_type](prediction, solution, strict)))


def answer_text(text: str) -> str:
    """Return what stands in the first `<answer>…</answer>` of a text, or the whole text when there is none, stripped.

    >>> answer_text("<answer> A </answer>"), answer_text(" A ")
    ('A', 'A')
    """
    _, opening, rest = text.partition("<answer>")
    inside, closing, _ = rest.partition("</answer>")
    return inside.strip() if opening and closing else text.strip()


def _multiple_choice(prediction: str, solution: str, strict: bool, options: Sequence[str] | None) -> float:
    if strict:
        return float(prediction == solution)
    labels = _option_labels(() if options is None else options)  # parquet gives None for an absent list
    predicted, true = read_option(prediction, labels), read_option(solution, labels)
    if true is None and predicted is None:
        return float(_plain(prediction) == _plain(solution))
    return float(predicted is not None and predicted == true)


def read_option(text: str, labels: dict[str, str] | None = None) -> str | None:
    """Read which option an answer names, as an upper-case letter.

    Args:
        text: the answer's text: `A`, `(A)`, `A.`, `A) text`, `a: text`, or an option's own text.
        labels: letter → the option's text; None or empty when the options are not known.

    Returns:
        The letter, or None when the text names no option, more than one, or a letter beside another option's text.

    >>> read_option("b) a red ball"), read_option("a red ball"), read_option("A. B. C.")
    ('B', None, None)
    >>> read_option("a red ball", {"A": "a blue ball", "B": "a red ball"})
    'B'
    """
    labels = labels or {}
    text = unicodedata.normalize("NFKC", text).strip()
    letter, rest = _split_label(text)
    known = letter is not None and (not labels or letter in labels)
    if known and not rest:
        return letter
    own = _letters_of(text, labels)
    if len(own) == 1:
        return own[0]
    if not known:
        return None
    meant = _letters_of(rest, labels)
    if meant:
        return letter if letter in meant else None
    return letter if _split_label(rest)[0] is None else None


def _letters_of(text: str, labels: dict[str, str]) -> list[str]:
    plain = _plain(text)
    return [letter for letter, option in labels.items() if _plain(option) == plain]


def _split_label(text: str) -> tuple[str | None, str]:
    """Split `(A) text` into ("A", "text"); a bare letter before a word ("a dog") is an article, not a label."""
    match = _LABELLED.fullmatch(text)
    if match is None:
        return None, text
    plain, rest = match["plain"], (match["text"] or "").strip()
    if plain and rest and not match["mark"]:
        return None, text
    return (plain or match["round"] or match["square"]).upper(), rest


def _option_labels(options: Sequence[str]) -> dict[str, str]:
    """Map letters to option texts: by the options' own labels when every one has its own, else by position."""
    texts = [unicodedata.normalize("NFKC", str(option)).strip() for option in options]
    split = [_split_label(text) for text in texts]
    own = {letter: rest for letter, rest in split if letter is not None and rest}
    if len(own) == len(texts):
        return own
    return dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", texts, strict=False))


def _plain(text: str) -> str:
    """Fold what does not tell two option texts apart: case, white space, a closing full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(". ")


def _numerical(prediction: str, solution: str, strict: bool) -> float:
    if strict and _has_point(prediction) != _has_point(solution):
        return 0.0
    predicted, true = _numbers(prediction, solution, strict)
    if predicted is None or true is None:
        return 0.0
    return float(round(predicted, 2) == round(true, 2))


def _regression(prediction: str, solution: str, strict: bool) -> float:
    predicted, true = _numbers(prediction, solution, strict)
    if predicted is None or true is None or not math.isfinite(predicted) or not math.isfinite(true):
        return 0.0
    return 1 - (abs(predicted - true) + 1e-9) / (abs(true) + 1e-9)


def _numbers(prediction: str, solution: str, strict: bool) -> tuple[float | None, float | None]:
    read = _read_float if strict else read_number
    return read(prediction), read(solution)


def _has_point(text: str) -> bool:
    return "." in text or "," in text


def _read_float(text: str) -> float | None:
    """Read a number as Video-R1 does: commas out, then whatever `float` accepts."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def read_number(text: str) -> float | None:
    """Read a finite number as people write it: thousands commas or spaces, a trailing unit, `%` or full stop.

    >>> read_number("1,234.5 km/h"), read_number("50%"), read_number("3 million"), read_number("5 or 6")
    (1234.5, 50.0, None, None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    match = _QUANTITY.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None or (match["unit"] or "").casefold() in _MULTIPLIERS:
        return None
    value = float(re.sub(r"[,\s]", "", match["number"]))
    return value if math.isfinite(value) else None


def _ocr(prediction: str, solution: str, strict: bool) -> float:
    reference, hypothesis = solution.split(), prediction.split()
    # At twice the reference's words the insertions alone make the error rate 1: no need to align.
    if len(hypothesis) >= 2 * len(reference):
        return 0.0
    if len(reference) > MAX_WORDS:
        reference, hypothesis = reference[:MAX_WORDS], hypothesis[:MAX_WORDS]
    return 1 - jiwer.wer(" ".join(reference), " ".join(hypothesis))


def _free_form(prediction: str, solution: str, strict: bool) -> float:
    scores = _rouge().score(_rouge_words(solution), _rouge_words(prediction))
    return sum(score.fmeasure for score in scores.values()) / len(scores)


def _rouge_words(text: str) -> str:
    """Cut a text to the words ROUGE's own tokenizer would find, at most so many and so long."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return " ".join(word[:MAX_WORD_LENGTH] for word in words[:MAX_WORDS])


@lru_cache(maxsize=1)
def _rouge():  # type: ignore[no-untyped-def]
    # Imported on first use: rouge_score loads nltk, which costs a second that most callers need not pay.
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer

    # Its own tokenizer stems every word anew, four fifths of its time; what reaches it here is words already.
    stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)

    class Stems:
        def tokenize(self, text: str) -> list[str]:
            return [stem(word) if len(word) > 3 else word for word in text.split()]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Stems())


_SCORERS: dict[str, Callable[[str, str, bool], float]] = {
    "numerical": _numerical,
    "OCR": _ocr,
    "free-form": _free_form,
    "regression": _regression,
}
