# SPDX-License-Identifier: Apache-2.0
"""Reads JSON lists and JSON lines, gzip-compressed or not, one value at a time, with the line of each.

Memory holds one chunk and one value, whatever the size of the file. A part that cannot be read costs one value: those
before and after it are still read. The first bytes of a file decide its format, not its name.
"""

import gzip
import json
import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from verl_p2r.data.errors import RowError

CHUNK = 1 << 20  # bytes
LONGEST = 1 << 26  # characters of one value; a longer one is damage, such as a quote that is never closed
DAMAGE = "damaged file"  # reason for a file that ends too early or cannot be decompressed

_MAGIC = b"\x1f\x8b"
_NEXT_OBJECT = re.compile(r",\s*(?=\{)")
_START = re.compile(r"[\s\ufeff]*")  # including a byte order mark
_BETWEEN = re.compile(r"[\s,\[\]]*")  # between two items; missing commas are tolerated
_TAIL = 16  # an error this close to the end of the buffer may be a token cut in half: `-Infinity`, `\ud83d\ude00`


class RawRecord(NamedTuple):
    """A value, and where it was read.

    Args:
        file: path of the file.
        line: line of the value's first character, from 1.
        value: the JSON value, or the `RowError` that says why it cannot be read.
    """

    file: str
    line: int
    value: Any


def read_values(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> Iterator[RawRecord]:
    """Read the values of a JSON list, or of JSON lines.

    Args:
        path: path of the file, which may be gzip-compressed, in one or several members.
        on_bytes: called with the number of bytes read since the last call.

    Yields:
        Each value. Bytes that are not UTF-8 become lone surrogates (Python's `surrogateescape`), so that only the
        values that contain them are lost. A file that ends too early yields a last `RowError` with reason `DAMAGE`.

    Raises:
        OSError: the file cannot be opened.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        text = _Text(_decoded(raw, stack, on_bytes))
        text.skip(_START)
        for line, value in _items(text) if text.startswith("[") else _lines(text):
            yield RawRecord(str(path), line, value)
        if text.damage:
            yield RawRecord(str(path), text.line, RowError("", DAMAGE, f"the file is damaged here ({text.damage})"))


def _decoded(raw: IO[bytes], stack: ExitStack, on_bytes: Callable[[int], object]) -> Iterator[str]:
    """Yield the text of a file in chunks."""
    zipped = raw.read(2) == _MAGIC
    raw.seek(0)
    file: Any = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
    decoder = getincrementaldecoder("utf-8")("surrogateescape")
    seen = 0
    while data := file.read1(CHUNK):
        on_bytes(raw.tell() - seen)
        seen = raw.tell()
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


class _Text:
    """A window on a text: the unread part starts at `position` in `buffer`, on line `line`."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self.buffer, self.position, self.line = "", 0, 1
        self.ended, self.damage = False, ""

    def more(self) -> bool:
        """Read more text, doubling the unread part; return False at the end."""
        parts = [self.buffer[self.position :]]
        wanted = max(len(parts[0]), 1)
        try:
            while wanted > 0:
                parts.append(next(self._chunks))
                wanted -= len(parts[-1])
        except StopIteration:
            self.ended = True
        except (EOFError, OSError, zlib.error) as error:
            self.ended, self.damage = True, str(error)
        before = len(parts[0])
        self.buffer, self.position = "".join(parts), 0
        return len(self.buffer) > before

    def advance(self, end: int) -> None:
        """Move to `end` in the buffer."""
        self.line += self.buffer.count("\n", self.position, end)
        self.position = end

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Move past what matches, reading more text as needed, and return it."""
        skipped = ""
        while True:
            match = pattern.match(self.buffer, self.position)
            end = match.end() if match else self.position
            skipped += self.buffer[self.position : end]
            self.advance(end)
            if self.left or not self.more():
                return skipped

    def startswith(self, text: str) -> bool:
        return self.buffer.startswith(text, self.position)

    @property
    def left(self) -> int:
        return len(self.buffer) - self.position


def _items(text: _Text) -> Iterator[tuple[int, Any]]:
    """Yield the items of the list that starts here, and of any lists that follow it."""
    decode = json.JSONDecoder().raw_decode
    while True:
        between = text.skip(_BETWEEN)
        if not text.left:
            if not between.rstrip().endswith("]"):
                text.damage = text.damage or "the list has no end"
            return
        line = text.line
        try:
            value, end = decode(text.buffer, text.position)
        except (ValueError, RecursionError) as error:
            cut = _is_cut(text, error)
            if cut and not text.ended and text.left <= LONGEST:
                text.more()
                continue
            if cut and text.ended:
                text.damage = text.damage or "the list has no end"
                return
            yield line, _unreadable(error)
            _find_next(text, getattr(error, "pos", text.position))
        else:
            text.advance(end)
            yield line, value


def _is_cut(text: _Text, error: Exception) -> bool:
    """Return whether a value may be wrong only because it is cut off."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    tail = 0 if text.ended else _TAIL
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - tail


def _find_next(text: _Text, at: int) -> None:
    """Move to the next object after a bad value: the first one after the last comma before the error."""
    text.advance(max(text.buffer.rfind(",", text.position, at + 1), text.position))
    while not (match := _NEXT_OBJECT.search(text.buffer, text.position)):
        comma = text.buffer.rfind(",", text.position)  # the object may be in the next chunk
        text.advance(comma if comma >= 0 and not text.buffer[comma + 1 :].strip() else len(text.buffer.rstrip("] \n")))
        if not text.more():
            return
    text.advance(match.end())


def _lines(text: _Text) -> Iterator[tuple[int, Any]]:
    """Yield the values of the remaining lines, except blank ones."""
    while text.left or text.more():
        end = text.buffer.find("\n", text.position)
        if end < 0 and text.left <= LONGEST and text.more():
            continue
        if end < 0 and not text.ended:
            yield text.line, RowError("", "unreadable record", f"the line is longer than {LONGEST} characters: drop it")
            _leave_line(text)
            continue
        line, end = text.line, end + 1 if end >= 0 else len(text.buffer)
        written = text.buffer[text.position : end]
        cut = text.ended and text.damage and end == len(text.buffer) and not written.endswith("\n")
        text.advance(end)
        if not written.strip() or cut:
            continue
        try:
            yield line, json.loads(written)
        except (ValueError, RecursionError) as error:
            yield line, _unreadable(error)


def _leave_line(text: _Text) -> None:
    while (end := text.buffer.find("\n", text.position)) < 0:
        text.advance(len(text.buffer))
        if not text.more():
            return
    text.advance(end + 1)


def _unreadable(error: Exception) -> RowError:
    return RowError("", "unreadable record", f"it is not JSON ({error}): repair or drop it")
