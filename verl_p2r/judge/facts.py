# SPDX-License-Identifier: Apache-2.0
"""Facts that an observation must state, and the word-by-word comparison of texts that judges and guards share."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Burmese and others) or with attached particles
# (Hangul): each letter with its marks counts as a word, so that a phrase is found anywhere in a run of letters.
_LETTER = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf\u1000-\u102a\u103f\u1050-\u1055\u105a-\u105d"
    "\u1061\u1065\u1066\u106e-\u1070\u1075-\u1081\u108e\u1780-\u17b3\u17d7\u17dc\u1950-\u1974\u1980-\u19c9\u1a00-\u1a16\u1a20-\u1a54\u1b05-\u1b33"
    "\ua984-\ua9b2\u1100-\u11ff\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_ON_LETTER = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d"
    "\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd\u1a17-\u1a1b\u1a55-\u1a7c\u1b00-\u1b04\u1b34-\u1b44\ua980-\ua983\ua9b3-\ua9c0"
    "\u3099\u309a"
)
_UNSPACED = re.compile(f"[{_LETTER}][{_ON_LETTER}]*")
# Vowel signs and accents that Python does not count as letters: those of Latin, Cyrillic and Greek, and those of
# Devanagari to Tibetan without their punctuation.
_MARKS = "\u0300-\u036f\u0483-\u0487\u0900-\u0963\u0971-\u0df3\u0f18\u0f19\u0f35\u0f37\u0f39\u0f71-\u0f84\u0f86-\u0fbc"
_IN_WORD = rf"[\w{_MARKS}{_ON_LETTER}]"
# A word; a number keeps its sign, decimal point and thousands commas.
_WORD = re.compile(rf"(?:(?<!{_IN_WORD})-(?=\d))?{_IN_WORD}+(?:(?<=\d)(?:\.(?=\d)|,(?=\d{{3}}(?!\d))){_IN_WORD}+)*")
# Arabic and Hebrew points that most writers omit, and the bar that stretches a word.
_OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8]"
)

# Powers, indices, fractions and circled digits would fold into plain digits: 3² must not state 32, nor 1½ state 11.
_AFTER_A_DIGIT = re.compile(r"(?<=\d)(?=[²³¹⁰⁴-⁹₀-₉¼-¾⅐-⅞①-⑳])")


@dataclass(frozen=True)
class Fact:
    """A phrase that the observation must state, with phrases that contradict it.

    Args:
        state: A word or phrase.
        excludes: Contradicting phrases. An observation that states one of them fails, so that listing every
            possibility ("red green blue") earns nothing.

    Raises:
        ValueError: A phrase holds no word, or `state` itself states an excluded phrase.
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
            ValueError: The value has another shape, or no observation could satisfy the fact.

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
        # Parquet returns lists as arrays, and an absent list as None.
        excludes = value.get("not")
        phrases = () if excludes is None else _items(excludes, value)
        return cls(_text(value["state"], value), tuple(_text(phrase, value) for phrase in phrases))

    @classmethod
    def parse_all(cls, values: Any) -> "tuple[Fact, ...] | None":
        """Read a row's `extra_info.facts`, a list or array of facts; None or an empty list gives None.

        >>> Fact.parse_all(["red", "circle"])
        (Fact(state='red', excludes=()), Fact(state='circle', excludes=()))
        """
        if values is None:
            return None
        return tuple(cls.parse(value) for value in _items(values, values)) or None


def states(text: str, phrase: str) -> bool:
    """Tell whether a text contains a phrase as whole words, ignoring case, white space and punctuation.

    In scripts without spaces between words, and in Korean with its attached particles, a phrase is found anywhere in a
    run of letters. 红 is therefore found in 粉红: state whole phrases, or exclude the longer ones [ours].

    >>> states("A RED, round ball.", "red round"), states("a coloured ball", "red"), states("3.14 m", "3")
    (True, False, False)
    >>> states("画面中一个红色的球向左滚动。", "红色的球"), states("13个球", "3"), states("3个球", "3")
    (True, False, True)
    """
    return contains(words(text), phrase)


def contains(found: str, phrase: str) -> bool:
    """Tell whether a text, folded by `words`, contains a phrase as whole words."""
    return f" {words(phrase)} " in f" {found} "


def words(text: str) -> str:
    """Fold a text to its words, separated by single spaces; numbers keep their sign and decimals.

    In scripts without spaces, each letter is a separate word. A number or Latin word next to such a letter stays whole,
    and a minus after it is a sign [ours].

    >>> words("A RED, round ball: −1,234.5 kg!"), words("零下−3.5度")
    ('a red round ball -1234.5 kg', '零 下 -3.5 度')
    """
    if text.isascii():
        folded = text.lower()
    else:
        folded = unicodedata.normalize("NFKC", _AFTER_A_DIGIT.sub(" ", text)).casefold().replace("\u2212", "-")
    if not folded.isascii():
        folded = _UNSPACED.sub(r" \g<0> ", _OPTIONAL.sub("", folded))
    return " ".join(word.replace(",", "") for word in _WORD.findall(folded.replace("_", " ")))


def _items(values: Any, shown: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise ValueError(f"facts {shown!r}: give a list, for example ['red', 'circle']")
    return values


def _text(value: Any, shown: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"fact {shown!r}: {value!r} is not a text, quote it")
    return value
