# SPDX-License-Identifier: Apache-2.0
"""Which characters of a text are visible; template, lengths and answers share this definition."""

import re

INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters that are not white space
    r"\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # format characters
    r"\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # fillers: blank letters and patterns
    r"\ufe00-\ufe0f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # variation selectors, tags
    r"\ue000-\uf8ff\U000f0000-\U0010ffff"  # private use
)
"""Characters without width, ink or meaning, for use inside a regular expression's brackets; without white space."""

_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
_BLANK = re.compile(rf"[\s{INVISIBLE}]+")


def without_invisible(text: str) -> str:
    """Remove invisible characters but keep white space.

    >>> without_invisible("a\\u200b b\\u3164")
    'a b'
    """
    return _INVISIBLE.sub("", text)


def count_visible(text: str) -> int:
    """Count the visible characters of a text; white space is not visible.

    >>> count_visible(" a\\u200b b\\u3164"), count_visible("\\u2800\\ufeff\\n")
    (2, 0)
    """
    return len(_BLANK.sub("", text))


def is_visible(text: str) -> bool:
    """Tell whether a text has a visible character.

    >>> is_visible("\\u200b \\u00ad"), is_visible("\\u200b.")
    (False, True)
    """
    return bool(text) and _BLANK.fullmatch(text) is None
