# SPDX-License-Identifier: Apache-2.0
"""Builds the messages of a row with its media in place, in the form that chat templates and decoders take.

Media are either in columns, with a placeholder for each in the text (verl, Video-R1, LLaVA), or in the messages
themselves as content parts (OpenAI, qwen-vl-utils, TRL). Both become lists of parts: texts and canonical elements.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from verl_p2r.data.elements import KINDS, kind_of, names_medium
from verl_p2r.data.errors import RowError
from verl_p2r.data.values import is_unset, plain, read_text, shown

TAGS = {f"<{kind}>": kind for kind in (*KINDS, "audio")}
"""Placeholder of a medium → its kind."""

PLACEHOLDER = re.compile("|".join(TAGS))
_SPLIT = re.compile(f"({PLACEHOLDER.pattern})")
_TEXTS = ("text", "input_text", "output_text")

ReadElement = Callable[[Any, str], dict[str, Any]]
"""Makes a canonical element of a medium, given its value and its kind, `image` or `video`."""


def build_messages(row: Mapping[str, Any], key: str, fields: Mapping[str, str], read: ReadElement) -> list[dict]:
    """Put a row's media into its messages.

    Args:
        row: row with messages and columns of media.
        key: column of the messages: a list of mappings with `role` and `content`, or such a list as text.
        fields: for `image`, `video` and `audio`, the column of its media.
        read: makes a canonical element of a medium.

    Returns:
        The messages. If the row has any media, the content of every message is a list of parts, as in verl; otherwise
        it is unchanged.

    Raises:
        RowError: the messages cannot be read, or placeholders and media do not match in number.

    >>> row = {"prompt": [{"role": "user", "content": "<video>Why?"}], "videos": ["a.mp4"]}
    >>> build_messages(row, "prompt", {"video": "videos"}, lambda value, kind: {"type": kind, kind: value})
    [{'role': 'user', 'content': [{'type': 'video', 'video': 'a.mp4'}, {'type': 'text', 'text': 'Why?'}]}]
    """
    messages = messages_in(row.get(key), key)
    media = {kind: media_list(row.get(field)) for kind, field in fields.items()}
    _check_placeholders(messages, key, fields, media)
    queues = {kind: deque(values) for kind, values in media.items()}
    some = any(media.values())
    return [{**message, "content": _content(message["content"], key, some, queues, read)} for message in messages]


def messages_in(value: Any, key: str) -> list[dict[str, Any]]:
    """Read a column of messages.

    Raises:
        RowError: it is not a list of mappings with `role` and `content`.
    """
    value = read_text(value)
    if not isinstance(value, list | tuple) or not value:
        raise RowError(key, "wrong columns", f"field {key} is {shown(value)}: give a list of messages")
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise RowError(
                key,
                "wrong columns",
                f"field {key} holds {shown(message)}: give each message a role and a content, or drop the row",
            )
        content = plain(message["content"])
        if not (content is None or isinstance(content, str | list)):
            raise RowError(
                key,
                "wrong columns",
                f"field {key} has the content {shown(content)}: give a text, or a list of content parts",
            )
        messages.append({**message, "content": content})
    return messages


def media_list(value: Any) -> list[Any]:
    """Read a column of media, which may hold a list, a single medium or nothing.

    >>> media_list(None), media_list("a.png"), media_list(["a.png"]), media_list('["a.png", "b.png"]')
    ([], ['a.png'], ['a.png'], ['a.png', 'b.png'])
    """
    value = plain(value)
    if isinstance(value, str) and value[:1] in ("[", "{"):
        value = read_text(value)
    if is_unset(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _content(content: Any, key: str, some: bool, queues: Mapping[str, deque], read: ReadElement) -> Any:
    if isinstance(content, list):
        return [_part(part, key, queues, read) for part in content]
    if not isinstance(content, str) or not some:
        return content
    parts = (segment for segment in _SPLIT.split(content) if segment)
    return [
        _element(queues[TAGS[segment]].popleft(), TAGS[segment], read)
        if segment in TAGS and TAGS[segment] in queues
        else {"type": "text", "text": segment}
        for segment in parts
    ]


def _part(part: Any, key: str, queues: Mapping[str, deque], read: ReadElement) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping):
        kind = kind_of(part)
        if kind is not None:
            return read(part, kind) if names_medium(part, kind) else read(queues[kind].popleft(), kind)
        if part.get("type") in _TEXTS and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        if part.get("type") == "audio":
            return {name: value for name, value in part.items() if value is not None}
    raise RowError(
        key,
        "wrong columns",
        f"field {key} holds the part {shown(part)}: give parts of the types text, image and video, or drop the row",
    )


def _element(medium: Any, kind: str, read: ReadElement) -> dict[str, Any]:
    if kind != "audio":
        return read(medium, kind)
    if isinstance(medium, Mapping) and medium.keys() & {"audio", "audio_url"}:  # as in verl
        return {**medium, "type": "audio"}
    return {"type": "audio", "audio": medium}


def _check_placeholders(
    messages: Iterable[Mapping[str, Any]], key: str, fields: Mapping[str, str], media: Mapping[str, list]
) -> None:
    """Refuse a row with more or fewer placeholders than media in its columns."""
    counts = dict.fromkeys(fields, 0)
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            for tag, kind in TAGS.items():
                if kind in counts:
                    counts[kind] += content.count(tag)
        for part in content if isinstance(content, list) else ():
            named = kind_of(part) if isinstance(part, Mapping) else None
            if named is not None and not names_medium(part, named):
                counts[named] += 1
    for kind, count in counts.items():
        if count != len(media[kind]):
            raise RowError(
                key,
                "placeholders",
                f"field {key} holds {count} <{kind}> but the row has {len(media[kind])} of them in "
                f"{fields[kind]}: write one placeholder per medium, and none in other text",
            )
