# SPDX-License-Identifier: Apache-2.0
"""Keeping a key out of messages, verdicts and caches, also when a server echoes it encoded or in part."""

import base64
import functools
from urllib.parse import quote

_SHORTEST = 8  # characters; a shorter key protects nothing, and its pieces are common words
_PIECES = 6  # that an encoded form is searched by


class Redactor:
    """Replaces a key by `***`.

    Args:
        secret: the key; one of fewer than eight characters is left alone.
    """

    def __init__(self, secret: str) -> None:
        self._forms = _forms(secret) if len(secret) >= _SHORTEST else ()
        # Any part of the key itself that is twice as long as a piece holds a whole piece.
        self._pieces = [(form, at, form[at : at + size]) for form in self._forms for at, size in _grid(form, secret)]

    def whole(self, text: str) -> str:
        """A text without the whole key, plain or encoded; for texts whose words must stay as they are."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, "***")
        return text

    def all(self, text: str) -> str:
        """A text without the key and without longer parts of it, such as those that a cut leaves."""
        text = self.whole(text)  # first: a part of one form may be the beginning of another
        for form, at, piece in self._pieces:
            start = text.find(piece)
            while start >= 0:
                first, last = _grow(text, start, form, at, len(piece))
                text = f"{text[:first]}***{text[last:]}"
                start = text.find(piece, first + 3)
        return text


@functools.lru_cache(maxsize=16)
def redactor(secret: str) -> Redactor:
    """The redactor of a key, made once."""
    return Redactor(secret)


def _forms(secret: str) -> tuple[str, ...]:
    """A key as it is, and as JSON, URLs, Basic authentication and dumps write it; the longest first."""
    data = secret.encode()
    forms = {secret, quote(secret, safe=""), data.hex(), data.hex().upper()}
    for code in ("04x", "04X"):
        escaped = "".join(f"\\u{ord(sign):{code}}" for sign in secret)
        forms |= {escaped, escaped.replace("\\", "\\\\")}
    for before in range(3):  # bytes that stand before the key in what is encoded
        # The first and the last signs depend on the neighbours too.
        code = base64.b64encode(b"\0" * before + data).decode()[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]
        forms |= {code, code.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms, key=len, reverse=True))


def _grid(form: str, secret: str) -> list[tuple[int, int]]:
    """Where a form's pieces begin, and their length."""
    size = _SHORTEST if form == secret else max(len(form) // _PIECES, 2 * _SHORTEST)
    return [(at, min(size, len(form))) for at in range(0, max(len(form) - size, 0) + 1, size)]


def _grow(text: str, start: int, form: str, at: int, size: int) -> tuple[int, int]:
    """The longest part of a form around a piece of it that was found in a text."""
    first, last, end = start, start + size, at + size
    while first > 0 and at > 0 and text[first - 1] == form[at - 1]:
        first, at = first - 1, at - 1
    while last < len(text) and end < len(form) and text[last] == form[end]:
        last, end = last + 1, end + 1
    return first, last
