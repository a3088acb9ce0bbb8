# SPDX-License-Identifier: Apache-2.0
"""Facts an observation must state, and the comparison of texts word by word that the judges share."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A word, with what belongs to a number kept in it: its sign, decimal point and thousands commas.
_WORD = re.compile(r"(?:(?<![^\W_])-(?=\d))?[^\W_]+(?:(?<=\d)(?:\.(?=\d)|,(?=\d{3}(?!\d)))[^\W_]+)*")


@dataclass(frozen=True)
class Fact:
    """Something the observation must state, and what it must not state beside it.

    Args:
        state: a word or phrase.
        excludes: phrases that contradict it; an observation that states one of them fails, so that listing every
            possibility ("red green blue") earns nothing.
    """

    state: str
    excludes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not words(self.state):
            raise ValueError(f"fact {self.state!r} holds no word: write what the observation must state")
        for phrase in self.excludes:
            if not words(phrase):
                raise ValueError(f"fact {self.state!r}: its `not` holds {phrase!r}, which has no word: remove it")
            if states(self.state, phrase):
                raise ValueError(f"fact {self.state!r} states its own `not` {phrase!r}, so nothing passes: remove one")

    @classmethod
    def parse(cls, value: Any) -> "Fact":
        """Read a fact from a row: a text, or `{"state": "red", "not": ["green", "blue"]}`.

        Raises:
            ValueError: any other shape, or a fact that nothing could pass.

        >>> Fact.parse("two circles")
        Fact(state='two circles', excludes=())
        >>> Fact.parse({"state": "red", "not": ["green", "blue"]})
        Fact(state='red', excludes=('green', 'blue'))
        """
        if isinstance(value, Fact):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not {"state"} <= set(value) <= {"state", "not"}:
            raise ValueError(f'fact {value!r}: write a text, or {{"state": "red", "not": ["green", "blue"]}}')
        # Parquet gives lists back as arrays, and an absent list as None.
        excludes = value.get("not")
        phrases = () if excludes is None else _items(excludes, value)
        return cls(_text(value["state"], value), tuple(_text(phrase, value) for phrase in phrases))

    @classmethod
    def parse_all(cls, values: Any) -> "tuple[Fact, ...] | None":
        """Read a row's `extra_info.facts`: a list or array of facts; None or an empty one gives None.

        >>> Fact.parse_all(["red", "circle"])
        (Fact(state='red', excludes=()), Fact(state='circle', excludes=()))
        """
        if values is None:
            return None
        return tuple(cls.parse(value) for value in _items(values, values)) or None


def states(text: str, phrase: str) -> bool:
    """Tell whether a text holds a phrase as whole words, whatever the case, white space and punctuation.

    >>> states("A RED, round ball.", "red round"), states("a coloured ball", "red"), states("3.14 m", "3")
    (True, False, False)
    """
    return contains(words(text), phrase)


def contains(found: str, phrase: str) -> bool:
    """Tell whether `words` of a text hold a phrase as whole words."""
    return f" {words(phrase)} " in f" {found} "


def words(text: str) -> str:
    """Fold a text to its words, one space apart; numbers keep their sign and decimals.

    >>> words("A RED, round ball: −1,234.5 kg!")
    'a red round ball -1234.5 kg'
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    return " ".join(word.replace(",", "") for word in _WORD.findall(folded))


def _items(values: Any, shown: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise ValueError(f"facts {shown!r}: give a list, for example ['red', 'circle']")
    return values


def _text(value: Any, shown: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"fact {shown!r}: {value!r} is not a text, quote it")
    return value
