# SPDX-License-Identifier: Apache-2.0
"""The fields of a record, read one by one: texts, numbers, truth values, options, media rules, facts.

In files where every value is a text, such as the RL file of the VideoP2R release, numbers and lists are texts too,
written Python's way or JSON's. No text is ever evaluated.
"""

from collections.abc import Mapping
from typing import Any

from verl_p2r.data.errors import RowError
from verl_p2r.data.values import is_unset, plain, read_number, read_text, shown
from verl_p2r.judge.facts import Fact

_SIZE = {"min_pixels": int, "max_pixels": int, "resized_height": int, "resized_width": int}
_TIME = {"fps": float, "nframes": int, "min_frames": int, "max_frames": int, "video_start": float, "video_end": float}
MEDIA_FIELDS: Mapping[str, Mapping[str, type]] = {"image": _SIZE, "video": {**_TIME, **_SIZE, "total_pixels": int}}
"""Keys of the field `media` for each modality: qwen-vl-utils' names for sampling (seconds, frames), size (pixels)."""

MOST = 2**53  # the largest whole number that every JSON reader keeps exact

_SHOWN = 80  # characters of a value in a message
_TRUTHS = {"true": True, "false": False}


def required_text(raw: Mapping[str, Any], name: str) -> str:
    """Read a field that must hold visible text; a number becomes text.

    Args:
        raw: JSON object of a record.
        name: name of the field.

    Raises:
        RowError: the field is missing, empty or of another type.

    >>> required_text({"solution": 3}, "solution")
    '3'
    """
    value = raw.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_unset(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        reason = "no ground truth" if name == "solution" else f"no {name}"
        raise RowError(name, reason, f"field {name} is {shown(value)}: give a text, or drop the record")
    return value


def _value(raw: Mapping[str, Any], name: str) -> Any:
    """Return a field's value without the types of libraries; None when the field is not set."""
    value = raw.get(name)
    if type(value) is not str and value is not None:
        value = plain(value)
    return None if is_unset(value) else value


def text_of(raw: Mapping[str, Any], name: str) -> str | None:
    """Read a field that may hold text; a number becomes text.

    Args:
        raw: JSON object of a record.
        name: name of the field.

    Returns:
        The text, or None when the field is not set.

    Raises:
        RowError: the field holds something else.
    """
    value = _value(raw, name)
    if value is None:
        return None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise RowError(name, "no text", f"field {name} is {shown(value, _SHOWN)}: give a text, or leave it out")
    return str(value)


def name_of(raw: Mapping[str, Any], name: str) -> str | None:
    """Read a field that may hold a name or a number, such as `problem_id`.

    Args:
        raw: JSON object of a record.
        name: name of the field.

    Returns:
        The name as text, or None when the field is not set.

    Raises:
        RowError: the field holds something else.
    """
    value = _value(raw, name)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise RowError(name, f"bad {name}", f"field {name} is {shown(value)}: give a text or a number")
    return str(value)


def float_of(raw: Mapping[str, Any], name: str) -> float | None:
    """Read a field that may hold a number; None when it is not set.

    Raises:
        RowError: the field holds something else.
    """
    value = raw.get(name)
    if is_unset(value):
        return None
    number = read_number(value)
    if number is None:
        problem = f"field {name} is {shown(value, _SHOWN)}: give a number, or leave it out"
        raise RowError(name, "no number", problem)
    return float(number)


def bool_of(raw: Mapping[str, Any], name: str) -> bool | None:
    """Read a field that may hold true or false, also as text; None when it is not set.

    Raises:
        RowError: the field holds something else.
    """
    value = plain(raw.get(name))
    if isinstance(value, bool) or is_unset(value):
        return value if isinstance(value, bool) else None
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if truth is None:
        problem = f"field {name} is {shown(value, _SHOWN)}: give true or false, or leave it out"
        raise RowError(name, "no truth value", problem)
    return truth


def options_of(value: Any) -> list[str]:
    """Read the options of a question.

    Raises:
        RowError: they are not a list of texts.

    >>> options_of("['A. red', 'B. blue']"), options_of([1, 2.5]), options_of(None)
    (['A. red', 'B. blue'], ['1', '2.5'], [])
    """
    if type(value) is list and all(type(option) is str for option in value):
        return list(value)
    # "[]" is by far the most frequent text, and parsing is slow.
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
    """Read the field `media`: how this record's medium is sampled and sized.

    Args:
        value: a mapping from names in `MEDIA_FIELDS` to numbers, or such a mapping as text.
        kind: `image` or `video`.

    Returns:
        The names that are set, with numbers of the right types.

    Raises:
        RowError: it is not a mapping, or a name or number in it is wrong.

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
                "media", "bad media", f"field media holds {shown(name)}: for {kind}s give {', '.join(fields)}"
            )
    return rules_of(value, fields, "media")


def rules_of(values: Mapping[Any, Any], fields: Mapping[str, type], field: str) -> dict[str, Any]:
    """Read the sampling and size rules in a mapping.

    Args:
        values: mapping from names to numbers; names that are not in `fields` are ignored.
        fields: names of the rules and their types, one of `MEDIA_FIELDS`.
        field: name of the mapping in errors.

    Returns:
        The rules that are set, with numbers of the right types.

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
    """Read the field `facts`: what an observation must state.

    Args:
        value: anything that `Fact.parse_all` reads.

    Returns:
        The facts in one uniform shape, or None when there are none.

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
