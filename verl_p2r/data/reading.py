# SPDX-License-Identifier: Apache-2.0
"""JSON lists and JSON lines, gzip-compressed or not, read one value at a time with the line each stands on.

Memory holds one chunk and the value in hand, whatever the size of the file. What cannot be read is one bad value: those
before and after it are read all the same. What a file holds is told from its first bytes, not from its name.
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

from verl_p2r.data.rows import RowError

CHUNK = 1 << 20  # bytes
LONGEST = 1 << 26  # characters of one value; longer ones are damage, such as a quote that is never closed
DAMAGE = "damaged file"  # the reason when a file ends too early or cannot be decompressed

_MAGIC = b"\x1f\x8b"
_NEXT_OBJECT = re.compile(r",\s*(?=\{)")
_START = re.compile(r"[\s\ufeff]*")  # a byte order mark too
_BETWEEN = re.compile(r"[\s,\[\]]*")  # two items; commas are not insisted on
_TAIL = 16  # an error so close to the end of what has been read may be the end's: `-Infinity`, `\ud83d\ude00`


class RawRecord(NamedTuple):
    """A value as read, and where a person finds it.

    Args:
        file: the file's path.
        line: of the value's first character, from 1.
        value: what JSON makes of it; or the `RowError` that says why it cannot be read.
    """

    file: str
    line: int
    value: Any


def read_values(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> Iterator[RawRecord]:
    """Read the values of a JSON list, or of JSON lines.

    Args:
        path: of the file; it may be gzip-compressed, in one or several members.
        on_bytes: told how many more bytes of the file have been read, for a progress bar.

    Yields:
        Each value. Text that is not UTF-8 is kept as lone surrogates (Python's `surrogateescape`), so that only the
        values that hold it suffer. A file that ends too early yields a last `RowError` of the reason `DAMAGE`.

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
    """The file's text, chunk by chunk."""
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
    """The part of a text that is being looked at, from `position` in `buffer`, and the line it has come to."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self.buffer, self.position, self.line = "", 0, 1
        self.ended, self.damage = False, ""

    def more(self) -> bool:
        """Read on, as much again as there is; False at the end."""
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
        """Leave what stands before `end`."""
        self.line += self.buffer.count("\n", self.position, end)
        self.position = end

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Leave what matches, also across the end of what has been read, and give it."""
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
    """The items of a list, which starts here; of several lists one after the other, all of theirs."""
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
    """Whether what is wrong with a value may only be that there is not more of it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    tail = 0 if text.ended else _TAIL
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - tail


def _find_next(text: _Text, at: int) -> None:
    """Go to the next object behind a bad value: the first that follows the last comma before the error."""
    text.advance(max(text.buffer.rfind(",", text.position, at + 1), text.position))
    while not (match := _NEXT_OBJECT.search(text.buffer, text.position)):
        comma = text.buffer.rfind(",", text.position)  # the object may come with the next chunk
        text.advance(comma if comma >= 0 and not text.buffer[comma + 1 :].strip() else len(text.buffer.rstrip("] \n")))
        if not text.more():
            return
    text.advance(match.end())


def _lines(text: _Text) -> Iterator[tuple[int, Any]]:
    """The values of the lines from here on; blank ones are left out."""
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
