# SPDX-License-Identifier: Apache-2.0
"""Reads an answer from free text as MMMU and VideoMMMU do (arXiv 2311.16502, arXiv 2501.13826).

The rules are theirs; the code is ours.
"""

import re
from collections.abc import Sequence

from verl_p2r.answers.options import LETTERS

# Announcements of an answer: the text after the last of these on a line is read.
_ANNOUNCEMENTS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "in total ", "total "),
    *("identify ", "recognize ", "calculated as ", "counted as ", "measured as ", "observed as ", "concluded as "),
    *("found to be ", "equals ", "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_MANY_WORDS = 5  # in a reply of more words than this, an option's text counts too


def choice_letter(reply: str, options: Sequence[str]) -> str | None:
    """Read the option letter of a reply: the last `B.` or `B:`, else the last `(B)`, else the last `B `.

    A reply without any of them and of more than five words may hold an option's text instead.

    Args:
        reply: the reply.
        options: texts of the options, with or without their letters.

    Returns:
        The letter, or None when there is none.

    >>> options = ["red", "green", "blue"]
    >>> choice_letter("B", options), choice_letter("(A) or rather (C)", options), choice_letter("none", options)
    ('B', 'C', None)
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    text = f" {reply} "
    letters = LETTERS[: len(options)]
    for forms in (("{}.", "{}:"), ("({})",), ("{} ",)):
        found = [letter for form in forms for letter in letters if form.format(letter) in text]
        if len(found) == 1:
            return found[0]
        if found:
            form = next(form for form in forms if any(form.format(letter) in text for letter in letters))
            place = " {} " if form == "{} " else form
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) > _MANY_WORDS:
        lower = text.lower()
        own = {letter: _bare(option, letter) for letter, option in zip(letters, options, strict=False)}
        found = [letter for letter, option in own.items() if option in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(own[letter]))
    return None


def open_answer_matches(reply: str, truth: str) -> bool:
    """Return whether an open reply contains the correct answer.

    Each line is cut after its last announcement ("is", "answer", on the last line also "="). A number matches when
    it is equal after rounding to 2 places, a text when the truth is contained.

    Args:
        reply: the reply.
        truth: the correct answer.

    >>> open_answer_matches("The total is 234.567 N", "234.57"), open_answer_matches("It is not 5", "6")
    (True, False)
    """
    if not reply:
        return False
    truths = _normal(truth)
    for value in _candidates(reply):
        if isinstance(value, str):
            if any(isinstance(true, str) and true in value for true in truths):
                return True
        elif value in truths:
            return True
    return False


def _candidates(reply: str) -> set[str | float]:
    texts = _key_parts(reply.strip().strip(".").lower())
    numbers = [number for text in texts for pattern in _NUMBERS for number in pattern.findall(text)]
    return {value for text in (*texts, *numbers) for value in _normal(text)}


def _key_parts(reply: str) -> list[str]:
    parts: list[str] = []
    lines = reply.split("\n")
    for number, line in enumerate(lines, 1):
        shortest = ""
        for announcement in (*_ANNOUNCEMENTS, "=") if number == len(lines) else _ANNOUNCEMENTS:
            if announcement in line:
                rest = line.rsplit(announcement, 1)[1].strip()
                shortest = rest if not shortest or len(rest) < len(shortest) else shortest
        if shortest and shortest not in ":,.!?;'":
            parts.append(shortest)
    return parts or [reply]


def _normal(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _bare(option: str, letter: str) -> str:
    """Return the text of an option in lower case, without its letter."""
    return option.removeprefix(f"{letter}.").strip().lower()
