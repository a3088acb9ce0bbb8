# SPDX-License-Identifier: Apache-2.0
"""Reads single values of rows and records, as files and libraries write them, and shows them in errors.

A value may come from JSON, parquet, pandas or a file whose values are all texts. Reading a value never raises.
"""

import ast
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from typing import Any

from verl_p2r.data.errors import RowError

DEEPEST = 100  # levels of nesting; JSON and Arrow recurse, and neither documents its limit
SHOWN = 200  # characters shown of a value in an error
LONGEST_NUMBER = 64  # characters of a number

_NOTHING = frozenset(("", "None", "null", "NULL", "nan", "NaN", "<NA>", "NaT"))  # missing values that became texts
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_PLAIN = r"'[^'\\\r\n\0\ud800-\udfff]*'"  # a text without escapes
_PLAIN_TEXTS = re.compile(rf"\[{_PLAIN}(?:, {_PLAIN})*\]")
_MISSING = ("NAType", "NaTType")  # types of pandas, which this module does not import


def plain(value: Any) -> Any:
    """Convert a scalar or array of numpy, pandas or Arrow to Python's types; return any other value unchanged.

    >>> import numpy as np
    >>> plain(np.float32(0.5)), plain(np.array([1, 2])), plain("a")
    (0.5, [1, 2], 'a')
    """
    if value is None or type(value) in (str, int, float, bool, list, dict, bytes):
        return value
    for convert in ("tolist", "as_py"):  # numpy's scalars and arrays; Arrow's scalars
        method = getattr(value, convert, None)
        if callable(method):
            with suppress(Exception):
                return method()
    return value


def is_unset(value: Any) -> bool:
    """Return whether a value means "not set": None, NaN, pandas' NA, or one of these as text.

    >>> [is_unset(value) for value in (None, float("nan"), "nan", "", 0, False, "no", [])]
    [True, True, True, True, False, False, False, False]
    """
    if value is None:
        return True
    if isinstance(value, str):
        return len(value) <= 4 and value in _NOTHING  # the length first, because hashing long texts is slow
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in _MISSING


def read_number(value: Any) -> int | float | None:
    """Read a number of Python or numpy, a `Decimal`, a `Fraction`, or a decimal text.

    Returns:
        An int if the value is written as a whole number, otherwise a float. None for everything else, including truth
        values, infinity, and numbers outside the range of a float.

    >>> read_number("2"), read_number(" 0.5 "), read_number(Decimal(3)), read_number(True), read_number("1/2")
    (2, 0.5, 3, None, None)
    """
    if not isinstance(value, int | float | str | Decimal | Fraction):
        value = plain(value)
    if isinstance(value, str):
        text = value.strip() if len(value) <= LONGEST_NUMBER else ""
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | Fraction):
        return None
    try:
        if isinstance(value, Decimal | Fraction):
            value = int(value) if value == int(value) else float(value)
        return value if math.isfinite(value) else None
    except (OverflowError, ValueError):  # an int beyond floats; infinity as a Decimal
        return None


def read_text(value: Any) -> Any:
    """Read a list or a mapping that may be written as text, Python's way or JSON's; no text is ever evaluated.

    Returns:
        None for a value that is not set, the value that a text spells, or any other value unchanged.

    >>> read_text("['A. red', None]"), read_text('["A", null]'), read_text("nan"), read_text("A. red"), read_text([1])
    (['A. red', None], ['A', None], None, 'A. red', [1])
    """
    if value is None:
        return None
    if not isinstance(value, str):
        value = plain(value)
        return None if is_unset(value) else value
    text = value.strip()
    if is_unset(text):
        return None
    if _PLAIN_TEXTS.fullmatch(text):  # as files whose values are all texts write options; ten times as fast
        return text[2:-2].split("', '")
    # JSON first, because it writes characters beyond 16 bits as two escapes; Python's lists of texts are never JSON.
    for read in (ast.literal_eval,) if text.startswith(("['", "{'")) else (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: a list as a key
            continue
        return value if "\\" in text and _has_surrogates(found) else found
    return value


def _has_surrogates(value: Any) -> bool:
    """Return whether a text in a value contains half of a surrogate pair, which cannot be written to a file."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return any(map(_has_surrogates, chain.from_iterable(value.items())))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_has_surrogates, value))


def shown(value: Any, most: int = SHOWN) -> str:
    """Show a value in an error, with limited length and without ever raising.

    >>> shown("a\\ud800"), shown("x" * 300, 12), shown(10**5000)
    ("'a\\\\ud800'", "'xxxxxxxxxx…", 'an int that is too long to show')
    """
    if isinstance(value, str | bytes):
        value = value[: most + 1]
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, nesting beyond the stack, a class with a broken repr
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} that is too long to show"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"


def check_values(row: Mapping[str, Any]) -> None:
    """Refuse a row whose values cannot be written: too deeply nested, or text that is not Unicode.

    Args:
        row: JSON object.

    Raises:
        RowError: a value cannot be written; the message names its field.
    """
    for name, value in row.items():
        kind = type(value)
        if kind is str:
            if value.isascii() and name.isascii():
                continue
            text = value
        elif kind in (int, float, bool) or value is None or value in ([], {}):
            text = ""
        else:
            check_depth(name, value)
            text = json.dumps(value, ensure_ascii=False, default=repr)
        if not (text.isascii() and name.isascii()):
            try:
                text.encode()
                name.encode()
            except UnicodeEncodeError as error:
                raise RowError(
                    ascii(name)[1:-1],
                    "invalid UTF-8",
                    f"field {name!a} holds bytes that are not UTF-8, at character {error.start}: write it as UTF-8",
                ) from error


def check_depth(field: str, value: Any) -> None:
    """Refuse a value with more than `DEEPEST` levels of lists and mappings.

    Raises:
        RowError: it has more levels; the message names the field.
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for nested in level
            for item in (nested.values() if isinstance(nested, dict) else nested)
            if isinstance(item, dict | list | tuple)
        ]
        if not level:
            return
    raise RowError(
        field, "nested too deeply", f"field {field} is nested deeper than {DEEPEST} levels: flatten it, or drop it"
    )
