# SPDX-License-Identifier: Apache-2.0
"""Fields of a record that hold more than a text: its options, the part of its medium it is about, its facts.

In files where every value is a text, such as the RL file of the VideoP2R release, these are texts too, written Python's
way or JSON's; no text is ever evaluated.
"""

from collections.abc import Mapping
from typing import Any

from verl_p2r.data.errors import RowError
from verl_p2r.data.values import is_unset, plain, read_number, read_text, shown
from verl_p2r.judge.facts import Fact

_SIZE = {"min_pixels": int, "max_pixels": int, "resized_height": int, "resized_width": int}
_TIME = {"fps": float, "nframes": int, "min_frames": int, "max_frames": int, "video_start": float, "video_end": float}
MEDIA_FIELDS: Mapping[str, Mapping[str, type]] = {"image": _SIZE, "video": {**_TIME, **_SIZE, "total_pixels": int}}
"""What `media` may hold for each modality: qwen-vl-utils' names for sampling (seconds, frames) and size (pixels)."""

MOST = 2**53  # whole numbers up to here are exact in JSON, wherever it is read


def options_of(value: Any) -> list[str]:
    """Read the options of a question.

    Raises:
        RowError: they are not a list of texts.

    >>> options_of("['A. red', 'B. blue']"), options_of([1, 2.5]), options_of(None)
    (['A. red', 'B. blue'], ['1', '2.5'], [])
    """
    if type(value) is list and all(type(option) is str for option in value):
        return list(value)
    # Most often "[]", and a parser takes a while.
    value = [] if isinstance(value, str) and value == "[]" else read_text(value)
    if value is None:
        return []
    options = [plain(option) for option in value] if isinstance(value, list | tuple) else [None]
    if any(is_unset(option) and not isinstance(option, str) for option in options) or not all(
        isinstance(option, str | int | float) for option in options
    ):
        raise RowError("options", "unreadable options", f"field options is {shown(value)}: give a list of texts")
    return [str(option) for option in options]


def media_of(value: Any, kind: str) -> dict[str, Any]:
    """Read how a record's medium is sampled and sized: keys of its element in a message, in addition to its path.

    Args:
        value: the field `media`: a mapping from names in `MEDIA_FIELDS` to numbers.
        kind: `image` or `video`.

    Returns:
        The names that are set, with numbers of their types.

    Raises:
        RowError: it is not a mapping, or one of its names or numbers is not what it should be.

    >>> media_of({"video_start": "60", "video_end": 90, "nframes": None}, "video")
    {'video_start': 60.0, 'video_end': 90.0}
    >>> media_of("{'max_pixels': 50176}", "image")
    {'max_pixels': 50176}
    """
    value = read_text(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowError("media", "bad media", f"field media is {shown(value)}: give a mapping, such as {{'fps': 2}}")
    fields = MEDIA_FIELDS[kind]
    for name in value:
        if name not in fields:
            raise RowError(
                "media", "bad media", f"field media holds {shown(name)}: of {kind}s give {', '.join(fields)}"
            )
    return rules_of(value, fields, "media")


def rules_of(values: Mapping[Any, Any], fields: Mapping[str, type], field: str) -> dict[str, Any]:
    """Read the rules for sampling and size in a mapping, with numbers of their types.

    Args:
        values: names and numbers; other names are not looked at, and values that are not set are left out.
        fields: the names of the rules, and their types: one of `MEDIA_FIELDS`.
        field: how errors call the mapping.

    Raises:
        RowError: naming the rule whose value is not a number, or out of range.

    >>> rules_of({"video": "a.mp4", "fps": "2", "nframes": float("nan")}, MEDIA_FIELDS["video"], "videos")
    {'fps': 2.0}
    """
    rules: dict[str, Any] = {}
    for name, value in values.items():
        kind = fields.get(name)
        if kind is None or value is None:
            continue
        if type(value) is kind and 0 < value <= MOST:  # type: ignore[operator]
            rules[name] = value
        elif not is_unset(value := value.strip() if isinstance(value, str) else plain(value)):
            rules[name] = _number(f"{field}.{name}", value, kind, zero=name == "video_start")
    return rules


def facts_of(value: Any) -> list[dict[str, Any]] | None:
    """Read the facts that an observation must state; the result writes them all alike.

    Args:
        value: the field `facts`: what `Fact.parse_all` reads.

    Raises:
        RowError: they cannot be read.

    >>> facts_of(["two balls", {"state": "red", "not": ["blue"]}])
    [{'state': 'two balls', 'not': []}, {'state': 'red', 'not': ['blue']}]
    """
    value = read_text(value)
    if value is None:
        return None
    try:
        facts = Fact.parse_all(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError("facts", "bad facts", f"field facts: {error}") from error
    return [{"state": fact.state, "not": list(fact.excludes)} for fact in facts] if facts else None


def _number(name: str, value: Any, kind: type, zero: bool) -> int | float:
    number = read_number(value)
    if number is None or not (0 < number <= MOST or (zero and number == 0)) or kind(number) != number:
        what = "whole number" if kind is int else "number"
        least = "at least 0" if zero else "above 0"
        least += f" and at most {MOST}" if number is not None and number > MOST else ""
        raise RowError(name.partition(".")[0], "bad media", f"field {name} is {shown(value)}: give a {what} {least}")
    result: int | float = kind(number)
    return result
