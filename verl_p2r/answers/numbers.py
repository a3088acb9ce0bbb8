# SPDX-License-Identifier: Apache-2.0
"""Reads numbers as people write them: thousands, fractions, powers of ten, words, multipliers, a unit [ours]."""

import math
import re
from dataclasses import dataclass

from verl_p2r.answers.normal import normal
from verl_p2r.answers.number_words import leading_word_number
from verl_p2r.answers.units import CURRENCIES, MULTIPLIERS, Unit, common_unit, read_unit

MAX_NUMBER_LENGTH = 256
"""The lenient comparison does not read a longer text as a number, in characters."""

_PLAIN = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_APPROXIMATELY = re.compile(
    r"(?:about|approximately|approx\.?|around|roughly|nearly|almost|circa|ca\.|~|≈|大约为?|大約|大概|约为?|約)\s?(?=\S)",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"(?:(?!not\b)[^\W\d_]\w{0,20}(?: (?!not\b)\w{1,20}){0,3})?\s?[=≈]\s?(?=\S)", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_CLOSING = re.compile(r"\s?(?:in total|altogether|or so|左右|上下)$", re.IGNORECASE)
_CURRENCY = re.compile("|".join(map(re.escape, CURRENCIES)), re.IGNORECASE)
_SIGN = re.compile(r"[+-]\s?|(?:minus|negative)\s|零下|负|負", re.IGNORECASE)

_THOUSANDS = r"[1-9]\d{0,2}(?:(?:,\d{2,3})*,\d{3}|(?: \d{3})+)(?!\d)"
_DECIMAL = rf"(?:(?:{_THOUSANDS}|\d+)(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    r"(?P<whole>\d{1,9}) (?P<part>\d{1,9})/(?P<of>\d{1,9})(?![\d/.,])"
    r"|(?P<over>\d{1,15})\s?/\s?(?P<under>\d{1,15})(?![\d/.,])"
    rf"|(?:(?P<times>{_DECIMAL})\s?[×x*]\s?)?10\^\(?(?P<ten>[+-]?\d{{1,4}})\)?"
    rf"|(?P<digits>{_DECIMAL}(?:[eE][+-]?\d{{1,9}})?)",
    re.ASCII,
)
_SYMBOL = re.compile(r"[^\W\d]{1,20}(?: [^\W\d]{1,20}){0,2}")
_WORD = re.compile(r"[A-Za-z]+|[百千万億亿兆萬백천만억조십十]{1,2}")


@dataclass(frozen=True)
class Quantity:
    """A number with its unit.

    Attributes:
        value: The number with multipliers applied; may be infinite.
        unit: The known unit, which the other side may omit; None without one.
        symbol: Text after the number that is not a known unit (`π`, `x`, `pairs`); the other side must have it too.
    """

    value: float
    unit: Unit | None = None
    symbol: str = ""

    def matches(self, other: "Quantity") -> bool:
        """Tell whether the units allow comparing the values; nothing is converted."""
        if self.unit is not None and other.unit is not None and common_unit(self.unit, other.unit) is None:
            return False
        return self.symbol == other.symbol and math.isfinite(self.value) and math.isfinite(other.value)


def read_quantity(text: str) -> Quantity | None:
    """Read a number as people write it; None if the text is not a single number.

    This covers thousands separators, fractions (`1/2`, `1 1/2`, `½`), powers of ten (`2.5 × 10^3`), words
    (`twenty-one`, `三百`), multipliers (`3 million`, `5 万`, `3k`), a currency before or after the number, a unit, `%`,
    and words for "about".

    >>> read_quantity("about $1,234.5").value, read_quantity("-1 1/2").value, read_quantity("3 million").value
    (1234.5, -1.5, 3000000.0)
    >>> read_quantity("16π"), read_quantity("5 or 6"), read_quantity("5-6")
    (Quantity(value=16.0, unit=None, symbol='π'), None, None)
    """
    if _PLAIN.fullmatch(text):
        return Quantity(float(text))
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = normal(text).rstrip(" .")
    for pattern in (_ASSIGNED, _APPROXIMATELY):
        text = text[match.end() :] if (match := pattern.match(text)) else text
    if match := _BRACKETED.fullmatch(text):
        text = (match[1] or match[2] or "").strip()
    text = _CLOSING.sub("", text)
    negative, currency, text = _sign_and_currency(text)
    read = _value(text)
    if read is None:
        return None
    value, rest = _multiplied(*read)
    return _with_unit(-value if negative else value, currency, rest)


def read_number(text: str) -> float | None:
    """Read a finite number as people write it, ignoring its known unit; see `read_quantity`.

    >>> read_number("1,234.5 km/h"), read_number("50%"), read_number("3 million"), read_number("5 or 6")
    (1234.5, 50.0, 3000000.0, None)
    """
    quantity = read_quantity(text.strip())
    return quantity.value if quantity and not quantity.symbol and math.isfinite(quantity.value) else None


def _sign_and_currency(text: str) -> tuple[bool, Unit | None, str]:
    """Split off `-`, `$`, `-$` or `$-`."""
    signs, currency = "", None
    for pattern in (_SIGN, _CURRENCY, _SIGN):
        match = pattern.match(text)
        if match is None or (pattern is _SIGN and signs):
            continue
        text = text[match.end() :].lstrip()
        if pattern is _SIGN:
            signs = match[0]
        else:
            currency = read_unit(match[0].rstrip("."))
    return signs not in ("", "+", "+ "), currency, text


def _value(text: str) -> tuple[float, str] | None:
    """Read the number at the beginning of a text; return its value and the rest of the text."""
    match = _NUMBER.match(text)
    if match is None:
        words = leading_word_number(text)
        return None if words is None else (float(words[0]), words[1])
    rest = text[match.end() :]
    if match["ten"]:
        return _float(f"{match['times'] or 1}") * _float(f"1e{match['ten']}"), rest
    if match["digits"]:
        return _float(match["digits"]), rest
    over, under = int(match["part"] or match["over"]), int(match["of"] or match["under"])
    if under == 0 or (match["whole"] and over >= under):
        return None
    return int(match["whole"] or 0) + over / under, rest


def _float(number: str) -> float:
    return float(number.replace(",", "").replace(" ", ""))


def _multiplied(value: float, rest: str) -> tuple[float, str]:
    """Apply the multipliers after a number: `3 hundred thousand people`."""
    for _ in range(3):
        rest = rest.lstrip()
        match = _WORD.match(rest)
        if match is None or read_unit(rest):  # 千克 is a kilogram, not a thousand of something
            break
        word = match[0]
        spellings = (word, word.lower()) if word.isascii() else (word, word[0])
        spelling = next((spelling for spelling in spellings if spelling in MULTIPLIERS), None)
        if spelling is None:
            break
        value, rest = value * MULTIPLIERS[spelling], rest[len(spelling) :]
    return value, rest


def _with_unit(value: float, currency: Unit | None, rest: str) -> Quantity | None:
    rest = rest.strip()
    if not rest:
        return Quantity(value, currency)
    if unit := read_unit(rest):
        unit = common_unit(currency, unit) if currency else unit
        return Quantity(value, unit) if unit else None
    if currency or not _SYMBOL.fullmatch(rest):
        return None
    return Quantity(value, symbol=rest.casefold())
