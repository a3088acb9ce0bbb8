# SPDX-License-Identifier: Apache-2.0
"""Think–answer mismatch: does the thinking conclude with the option that is answered (arXiv 2511.11113)?

The paper lets a judge read the option from the thinking. Here a rule reads explicit conclusions first, and a judge that
never sees the answer reads the rest [ours].
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from verl_p2r.accuracy import answer_text
from verl_p2r.answers.options import LETTERS, Options, read_place
from verl_p2r.evaluation.intervals import wilson
from verl_p2r.judge.guards import MAX_OBSERVATION, as_data

_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice)\s*(?:is|must be|should be|would be|has to be|:|=)\s*"
    r"(?P<tail>[^\n]*?)(?=[.!?](?:\s|$)|\n|$)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b[Oo]ption\s+[(\[]?(?P<tail>[A-Z])[)\]]?\s+(?:is|seems)(?:\s+(?!not\b)\w+)?\s+"
    r"(?:correct|right|best|the answer)\b"
)
_OPTION = re.compile(r"<option>\s*(.*?)\s*</option>", re.IGNORECASE | re.DOTALL)
_SLOT = re.compile(r"\{(question|think)\}")


@dataclass(frozen=True)
class Conclusion:
    """One multiple choice item: what the thinking concludes, and what is answered.

    Args:
        thought: letter of the option that the thinking concludes with; None if it cannot be read.
        answer: letter of the option that is answered; None if it cannot be read.
        truth: the correct letter.
        source: who read the thinking: `rule`, `judge`, or empty if neither could.
    """

    thought: str | None
    answer: str | None
    truth: str
    source: str = ""


def stated_option(text: str, options: Sequence[str]) -> str | None:
    """Read the option that a text says outright is the answer, the last one if there are several; no question counts.

    Args:
        text: a text, such as the thinking of a response.
        options: options of the question.

    Returns:
        The letter; None if no sentence announces an answer, or the last one does not name a single option.

    >>> stated_option("It could be A. No: the answer must be (B).", ["A. red", "B. blue"])
    'B'
    >>> stated_option("It might be blue.", ["A. red", "B. blue"]) is None
    True
    """
    announced = (match for match in _ANNOUNCED.finditer(text) if text[match.end() : match.end() + 1] != "?")
    found = [*announced, *_NAMED.finditer(text)]
    if not found:
        return None
    return option_letter(max(found, key=lambda match: match.start())["tail"], options)


def option_letter(answer: str, options: Sequence[str]) -> str | None:
    """Read an answer as the letter of its option, by place; None if it does not name a single option.

    >>> option_letter("<answer>blue</answer>", ["A. red", "B. blue"])
    'B'
    """
    place = read_place(answer_text(answer), Options.read(options))
    return LETTERS[place] if place is not None and place < len(LETTERS) else None


def judge_prompt(question: str, think: str) -> str:
    """Write the prompt that asks a judge for the option; it holds the question, its options and the thinking only."""
    template = files("verl_p2r").joinpath("prompts/think_option.txt").read_text(encoding="utf-8")
    values = {"question": as_data(question), "think": as_data(think, MAX_OBSERVATION)}
    return _SLOT.sub(lambda match: values[match[1]], template)


def read_judge(reply: str, options: Sequence[str]) -> str | None:
    """Read a judge's reply: the letter in its last `<option>`; None for `none` and for anything else.

    >>> read_judge("It settles on <option>B</option>", ["A. red", "B. blue"]), read_judge("none", [])
    ('B', None)
    """
    found = _OPTION.findall(reply)
    return option_letter(found[-1], options) if found and found[-1].lower() != "none" else None


def mismatch_table(conclusions: Iterable[Conclusion]) -> dict[str, Any]:
    """Count how often thinking and answer disagree.

    Args:
        conclusions: one for each multiple choice item that was answered in the template.

    Returns:
        `n`; `read` (items where both can be read); `mismatch`, `low`, `high` (the share of these whose letters differ,
        and Wilson's 95 % interval); `unread_thinking`, `unread_answer` (shares of n); `by_judge` (share of the
        readings); and `table`: thinking `right` or `wrong` → answer `right` or `wrong` → items.
    """
    items = list(conclusions)
    read = [item for item in items if item.thought is not None and item.answer is not None]
    differ = sum(item.thought != item.answer for item in read)
    table = {side: {"right": 0, "wrong": 0} for side in ("right", "wrong")}
    for item in read:
        sides = ["right" if letter == item.truth else "wrong" for letter in (item.thought, item.answer)]
        table[sides[0]][sides[1]] += 1
    share = differ / len(read) if read else 0.0
    low, high = wilson(share, len(read))
    count = max(len(items), 1)
    thoughts = [item for item in items if item.thought is not None]
    return {
        "n": len(items),
        "read": len(read),
        "mismatch": share,
        "low": low,
        "high": high,
        "unread_thinking": sum(item.thought is None for item in items) / count,
        "unread_answer": sum(item.answer is None for item in items) / count,
        "by_judge": sum(item.source == "judge" for item in thoughts) / max(len(thoughts), 1),
        "table": table,
    }
