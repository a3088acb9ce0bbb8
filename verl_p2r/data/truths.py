# SPDX-License-Identifier: Apache-2.0
"""Finds ground truths that no answer can match, before a run spends rollouts on them.

The scorer itself decides: a truth that does not match itself matches nothing.
"""

from collections.abc import Sequence
from functools import lru_cache

from verl_p2r.accuracy import answer_accuracy, answer_text
from verl_p2r.data.errors import RowError
from verl_p2r.data.values import shown

AGREEMENT = 0.6
"""The accuracy from which the paper counts an answer as correct (arXiv 2511.11113, §3)."""
UNUSABLE = "unusable ground truth"
EXACT = ("multiple choice", "numerical")  # problem types whose accuracy is 0 or 1


def check_truth(problem_type: str, solution: str, options: Sequence[str] = (), field: str = "solution") -> None:
    """Refuse a ground truth that the scorer cannot match with any answer.

    Args:
        problem_type: one of `accuracy.problem_types()`.
        solution: the ground truth, with or without its `<answer>` tags.
        options: options of a multiple choice question.
        field: field that holds the truth, for the error.

    Raises:
        RowError: the reason is `unusable ground truth`.

    Edge rules [ours]:
        A truth is usable if its accuracy against itself is 1, or at least `AGREEMENT` for the graded types. A multiple
        choice truth must match one of the listed options instead. The lenient comparison is used.

    >>> check_truth("multiple choice", "<answer>B</answer>", ["A. red", "B. blue"])
    >>> check_truth("multiple choice", "C", ["A. red", "B. blue"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    verl_p2r.data.errors.RowError: field solution is 'C', which names none of the 2 options: correct it, ...
    """
    if problem_type == "multiple choice" and len(options):
        if not _names_an_option(solution, options):
            what = f"names none of the {len(options)} options: correct it, or drop the record"
            raise RowError(field, UNUSABLE, f"field {field} is {shown(solution)}, which {what}")
        return
    accuracy = _accuracy(problem_type, solution)
    if accuracy < (1 if problem_type in EXACT else AGREEMENT):
        what = f"scores {accuracy:g} against itself as {problem_type}, so that no answer can be right"
        raise RowError(
            field,
            UNUSABLE,
            f"field {field} is {shown(solution)}, which {what}: correct it or the problem type, or drop the record",
        )


def _names_an_option(solution: str, options: Sequence[str]) -> bool:
    text = answer_text(solution)
    place = ord(text) - ord("A") if len(text) == 1 else -1
    if 0 <= place < len(options) and options[place][:2] == f"{text}.":  # the most frequent case: a letter of an option
        return True
    return any(answer_accuracy("multiple choice", option, solution, options=options) >= 1 for option in options)


@lru_cache(maxsize=1 << 14)
def _accuracy(problem_type: str, solution: str) -> float:
    return answer_accuracy(problem_type, solution, solution)
