# SPDX-License-Identifier: Apache-2.0
"""The comparisons of Video-R1's reward (arXiv 2503.21776), for numbers that can be compared with its own."""

import math
from collections.abc import Callable

from verl_p2r.answers.texts import text_similarity, transcription_accuracy


def closeness(predicted: float | None, true: float | None) -> float:
    """Return 1 − (|pred − true| + 1e-9) / (|true| + 1e-9), or 0 if a number is missing or not finite.

    >>> round(closeness(90.0, 100.0), 6), closeness(None, 1.0)
    (0.9, 0.0)
    """
    if predicted is None or true is None or not math.isfinite(predicted) or not math.isfinite(true):
        return 0.0
    return 1 - (abs(predicted - true) + 1e-9) / (abs(true) + 1e-9)


def _choice(prediction: str, solution: str) -> float:
    return float(prediction == solution)


def _numerical(prediction: str, solution: str) -> float:
    if _has_point(prediction) != _has_point(solution):
        return 0.0
    predicted, true = _read_float(prediction), _read_float(solution)
    return 0.0 if predicted is None or true is None else float(round(predicted, 2) == round(true, 2))


def _regression(prediction: str, solution: str) -> float:
    return closeness(_read_float(prediction), _read_float(solution))


def _has_point(text: str) -> bool:
    return "." in text or "," in text


def _read_float(text: str) -> float | None:
    """Read a number as Video-R1 does: remove commas, then accept what `float` accepts."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _transcription(prediction: str, solution: str) -> float:
    return transcription_accuracy(prediction, solution, strict=True)


def _free_form(prediction: str, solution: str) -> float:
    return text_similarity(prediction, solution, strict=True)


STRICT_SCORERS: dict[str, Callable[[str, str], float]] = {
    "multiple choice": _choice,
    "numerical": _numerical,
    "OCR": _transcription,
    "free-form": _free_form,
    "regression": _regression,
}
"""Problem type → its strict comparison of prediction and solution; results may lie outside [0, 1]."""
