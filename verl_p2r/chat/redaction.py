# SPDX-License-Identifier: Apache-2.0
"""Removes a key from messages, verdicts and caches, even if a server echoes it encoded or in part."""

import base64
import functools
from urllib.parse import quote

_SHORTEST = 8  # characters; a shorter key protects nothing, and its pieces are common words
_PIECES = 6  # pieces of an encoded form that are searched for


class Redactor:
    """Replaces a key by `***`.

    Args:
        secret: The key; one of fewer than eight characters is not replaced.
    """

    def __init__(self, secret: str) -> None:
        self._forms = _forms(secret) if len(secret) >= _SHORTEST else ()
        # Any part of the key itself that is twice as long as a piece contains a complete piece.
        self._pieces = [(form, at, form[at : at + size]) for form in self._forms for at, size in _grid(form, secret)]

    def whole(self, text: str) -> str:
        """Remove the complete key, plain or encoded, from a text whose words must not change otherwise."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, "***")
        return text

    def all(self, text: str) -> str:
        """Remove the key and its longer parts, such as the remains of a truncated key."""
        text = self.whole(text)  # first, because a part of one form may be the beginning of another
        for form, at, piece in self._pieces:
            start = text.find(piece)
            while start >= 0:
                first, last = _grow(text, start, form, at, len(piece))
                text = f"{text[:first]}***{text[last:]}"
                start = text.find(piece, first + 3)
        return text


@functools.lru_cache(maxsize=16)
def redactor(secret: str) -> Redactor:
    """Return the cached redactor of a key."""
    return Redactor(secret)


def _forms(secret: str) -> tuple[str, ...]:
    """Return a key as JSON, URLs, Basic authentication and hex dumps write it, and as plain text; the longest first."""
    data = secret.encode()
    forms = {secret, quote(secret, safe=""), data.hex(), data.hex().upper()}
    for code in ("04x", "04X"):
        escaped = "".join(f"\\u{ord(sign):{code}}" for sign in secret)
        forms |= {escaped, escaped.replace("\\", "\\\\")}
    for before in range(3):  # number of bytes before the key in the encoded text, modulo 3
        # The first and the last character also depend on neighbouring bytes.
        code = base64.b64encode(b"\0" * before + data).decode()[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]
        forms |= {code, code.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms, key=len, reverse=True))


def _grid(form: str, secret: str) -> list[tuple[int, int]]:
    """Return the start and length of each piece of a form."""
    size = _SHORTEST if form == secret else max(len(form) // _PIECES, 2 * _SHORTEST)
    return [(at, min(size, len(form))) for at in range(0, max(len(form) - size, 0) + 1, size)]


def _grow(text: str, start: int, form: str, at: int, size: int) -> tuple[int, int]:
    """Extend a piece found in a text to the longest part of its form; return the bounds in the text."""
    first, last, end = start, start + size, at + size
    while first > 0 and at > 0 and text[first - 1] == form[at - 1]:
        first, at = first - 1, at - 1
    while last < len(text) and end < len(form) and text[last] == form[end]:
        last, end = last + 1, end + 1
    return first, last
