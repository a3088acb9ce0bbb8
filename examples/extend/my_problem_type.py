# SPDX-License-Identifier: Apache-2.0
"""A problem type of your own: "time span", scored by the overlap of two spans of time.

Its package names the function in pyproject.toml, so that every command and every training worker finds it:

    [project.entry-points."verl_p2r.problem_types"]
    "time span" = "my_problem_type:time_span"

The decorator serves scripts and tests, which import this module themselves.
"""

import re
from collections.abc import Sequence

from verl_p2r.accuracy import register_problem_type

_NUMBER = r"(\d+(?:\.\d+)?)"
_SPAN = re.compile(rf"{_NUMBER}\s*s?\s*(?:-|–|to)\s*{_NUMBER}\s*s?", re.IGNORECASE)


@register_problem_type("time span")
def time_span(prediction: str, solution: str, options: Sequence[str]) -> float:
    """Score a span such as `3.5 - 8 s` by its intersection over union with the true one.

    Args:
        prediction: The answer's text, never empty.
        solution: The ground truth, likewise.
        options: The row's options; this type has none.

    Returns:
        A number in [0, 1]; 0 if a text is not a single span.

    >>> time_span("2 to 6", "4 - 8 s", ()), time_span("at the end", "4 - 8 s", ())
    (0.3333333333333333, 0.0)
    """
    spans = [_read(text) for text in (prediction, solution)]
    if None in spans:
        return 0.0
    (start, end), (true_start, true_end) = spans
    shared = max(0.0, min(end, true_end) - max(start, true_start))
    return shared / (max(end, true_end) - min(start, true_start)) if shared else 0.0


def _read(text: str) -> tuple[float, float] | None:
    match = _SPAN.fullmatch(text.strip())
    span = (float(match[1]), float(match[2])) if match else None
    return span if span and span[0] < span[1] else None
