# SPDX-License-Identifier: Apache-2.0
"""Fields of a record that hold more than a text: its options, the part of its medium it is about, its facts.

In files where every value is a text, such as the RL file of the VideoP2R release, these are texts too, written Python's
way or JSON's; no text is ever evaluated.
"""

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from verl_p2r.facts import Fact
from verl_p2r.rows import RowError

_SIZE = {"min_pixels": int, "max_pixels": int, "resized_height": int, "resized_width": int}
_TIME = {"fps": float, "nframes": int, "min_frames": int, "max_frames": int, "video_start": float, "video_end": float}
MEDIA_FIELDS: Mapping[str, Mapping[str, type]] = {"image": _SIZE, "video": {**_TIME, **_SIZE, "total_pixels": int}}
"""What `media` may hold for each modality: qwen-vl-utils' names for sampling (seconds, frames) and size (pixels)."""

MOST = 2**53  # whole numbers up to here are exact in JSON, wherever it is read


def options_of(value: Any) -> list[str]:
    """The options of a question.

    Raises:
        RowError: they are no list of texts.

    >>> options_of("['A. red', 'B. blue']"), options_of([1, 2.5]), options_of(None)
    (['A. red', 'B. blue'], ['1', '2.5'], [])
    """
    value = [] if value == "[]" else _read(value)  # most often, and a parser takes a while
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(o, str | int | float) for o in value):
        raise RowError("options", "unreadable options", f"field options is {value!r}: give a list of texts")
    return [str(option) for option in value]


def media_of(value: Any, kind: str) -> dict[str, Any]:
    """How a record's medium is sampled and sized: keys of its element in a message, beside its path.

    Args:
        value: the field `media`: a mapping from names in `MEDIA_FIELDS` to numbers; None where a name is not set.
        kind: `image` or `video`.

    Returns:
        The names that are set, with numbers of their types.

    Raises:
        RowError: it is no mapping, or one of its names or numbers is not what it should be.

    >>> media_of({"video_start": 60, "video_end": 90, "nframes": 16}, "video")
    {'video_start': 60.0, 'video_end': 90.0, 'nframes': 16}
    >>> media_of("{'max_pixels': 50176}", "image")
    {'max_pixels': 50176}
    """
    value = _read(value)
    if value in (None, "nan"):
        return {}
    if not isinstance(value, Mapping):
        raise RowError("media", "bad media", f"field media is {value!r}: give a mapping, such as {{'fps': 2}}")
    fields = MEDIA_FIELDS[kind]
    for name in value:
        if name not in fields:
            raise RowError("media", "bad media", f"field media holds {name!r}: of {kind}s give {', '.join(fields)}")
    return {name: _number(name, number, fields[name]) for name, number in value.items() if number is not None}


def facts_of(value: Any) -> list[dict[str, Any]] | None:
    """The facts that an observation must state, all written alike.

    Args:
        value: the field `facts`: what `Fact.parse_all` reads.

    Raises:
        RowError: they cannot be read.

    >>> facts_of(["two balls", {"state": "red", "not": ["blue"]}])
    [{'state': 'two balls', 'not': []}, {'state': 'red', 'not': ['blue']}]
    """
    value = _read(value)
    if value in (None, "nan"):
        return None
    try:
        facts = Fact.parse_all(value)
    except ValueError as error:
        raise RowError("facts", "bad facts", f"field facts: {error}") from error
    return [{"state": fact.state, "not": list(fact.excludes)} for fact in facts] if facts else None


def _number(name: str, number: Any, kind: type) -> Any:
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    least = "at least 0" if name == "video_start" else "above 0"
    if not plain or not (0 < number <= MOST or (number == 0 and name == "video_start")) or kind(number) != number:
        what = "whole number" if kind is int else "number"
        raise RowError("media", "bad media", f"field media.{name} is {number!r}: give a {what} {least}")
    return kind(number)


def _read(value: Any) -> Any:
    """A value that may be written as a text, Python's way or JSON's; blank is None, and other text stays text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip() or "None")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value
