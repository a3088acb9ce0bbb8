# SPDX-License-Identifier: Apache-2.0
"""Thinking labelled by hand with the option that it concludes with, to measure who reads it: the rule, or a judge.

The package's own set is `evaluation/cases/mismatch.jsonl`: one JSON object a line.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from verl_p2r.answers.options import LETTERS
from verl_p2r.evaluation.intervals import wilson

_FIELDS = {"id": str, "kind": str, "question": str, "options": list, "think": str, "letter": str}


@dataclass(frozen=True)
class LabelledThinking:
    """The thinking about one multiple choice question, and its label.

    Args:
        id: name of the case.
        kind: what makes it easy or hard to read, for example `stated` or `corrected`.
        question: the question, without its options.
        options: the options with their letters.
        think: the thinking.
        letter: letter of the option that it concludes with; None if it concludes with no single option.
    """

    id: str
    kind: str
    question: str
    options: tuple[str, ...]
    think: str
    letter: str | None


def labelled_thinking(path: Path | None = None) -> list[LabelledThinking]:
    """Read labelled thinking.

    Args:
        path: a file of JSON objects, one a line, with the fields of `LabelledThinking`; `letter` is empty for None.
            By default the package's own set.

    Raises:
        ValueError: the file cannot be read, or a case has a missing or wrong field; the message names the line.
    """
    source = path or files("verl_p2r.evaluation").joinpath("cases/mismatch.jsonl")
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): name a file of JSON objects, one a line") from error
    cases = [_case(line, f"{path or 'mismatch.jsonl'}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise ValueError(f"{path} holds no cases: give at least one")
    return cases


def _case(line: str, where: str) -> LabelledThinking:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    for name, kind in _FIELDS.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(name), kind):
            raise ValueError(f"{where}: field {name} is missing or not a {kind.__name__}")
    letters = list(LETTERS[: len(raw["options"])])
    if raw["letter"] and raw["letter"] not in letters:
        raise ValueError(f"{where}: field letter is {raw['letter']!r}: give one of {', '.join(letters)}, or nothing")
    own = {name: raw[name] for name in _FIELDS}
    return LabelledThinking(**{**own, "options": tuple(map(str, own["options"])), "letter": own["letter"] or None})


def reading_quality(cases: Sequence[LabelledThinking], letters: Sequence[str | None]) -> dict[str, float]:
    """Compare readings with labels.

    A wrong letter can turn agreement into a mismatch or hide one. A letter that was not read only makes the share of
    unread thinking larger.

    Args:
        cases: labelled thinking. Length n.
        letters: what was read of each, None for nothing.

    Returns:
        `n`; `right`, `low`, `high` (the share of readings that equal the label, with Wilson's 95 % interval); `wrong`
        (share of cases with another letter than the label's); `missed` (share of cases whose letter was not read).
    """
    pairs = [(case.letter, letter) for case, letter in zip(cases, letters, strict=True)]
    n = len(pairs)
    right = sum(label == letter for label, letter in pairs) / n
    low, high = wilson(right, n)
    return {
        "n": n,
        "right": right,
        "low": low,
        "high": high,
        "wrong": sum(letter is not None and letter != label for label, letter in pairs) / n,
        "missed": sum(letter is None and label is not None for label, letter in pairs) / n,
    }
