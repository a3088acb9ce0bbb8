# SPDX-License-Identifier: Apache-2.0
"""Messages with media in place, from columns with placeholders and from content parts."""

import json

import numpy as np
import pandas as pd
import pytest

from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import build_messages

FIELDS = {"image": "images", "video": "videos", "audio": "audios"}
PARTS = [
    {"type": "text", "text": "First "},
    {"type": "image", "image": "a.png"},
    {"type": "text", "text": ", then "},
    {"type": "video", "video": "b.mp4"},
    {"type": "text", "text": "?"},
]


def read(value, kind):
    return {
        "type": kind,
        kind: value.get(kind) or value.get("path") or value["url"] if isinstance(value, dict) else value,
    }


def build(content, **columns):
    messages = content if isinstance(content, str) and content[:1] == "[" else [{"role": "user", "content": content}]
    return build_messages({"prompt": messages, **columns}, "prompt", FIELDS, read)[0]["content"]


COLUMNS = {"images": ["a.png"], "videos": ["b.mp4"]}


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("First <image>, then <video>?", COLUMNS),
        ("First <image>, then <video>?", {"images": "a.png", "videos": {"video": "b.mp4"}}),
        ("First <image>, then <video>?", {"images": '["a.png"]', "videos": '[{"video": "b.mp4"}]'}),
        ("First <image>, then <video>?", {"images": np.array(["a.png"], object), "videos": ("b.mp4",)}),
        (json.dumps([{"role": "user", "content": "First <image>, then <video>?"}]), COLUMNS),
        (PARTS, {}),
        (PARTS, {"images": None, "videos": pd.NA, "audios": float("nan")}),
        ([part | {"other": None} for part in PARTS], {"images": []}),
        (np.array(PARTS, object), {}),
        ([{"type": part["type"], "text": part.get("text")} for part in PARTS], COLUMNS),  # TRL: media in columns
        ([PARTS[0]["text"], PARTS[1], {"type": "input_text", "text": ", then "}, *PARTS[3:]], {}),
    ],
)
def test_media_columns_and_content_parts_give_same_message(content, columns):
    assert build(content, **columns) == PARTS


def test_text_becomes_parts_only_when_row_has_media():
    row = {"prompt": [{"role": "system", "content": "Look."}, {"role": "user", "content": "<image>?"}]}
    messages = build_messages({**row, "images": ["a.png"]}, "prompt", FIELDS, read)
    assert messages[0] == {"role": "system", "content": [{"type": "text", "text": "Look."}]}
    assert build("Why?") == "Why?"
    assert row["prompt"][1]["content"] == "<image>?"  # the row itself stays as it was


def test_audio_is_left_to_verl():
    assert build("<audio>?", audios=["a.wav"])[0] == {"type": "audio", "audio": "a.wav"}
    assert build("<audio>?", audios=[{"audio": "a.wav"}])[0] == {"type": "audio", "audio": "a.wav"}


@pytest.mark.parametrize(
    ("content", "columns", "reason"),
    [
        ("<video>?", {}, "placeholders"),
        ("?", {"videos": ["a.mp4"]}, "placeholders"),
        ("<video><image>?", COLUMNS | {"images": ["a.png"] * 2}, "placeholders"),
        ([{"type": "image"}], {}, "placeholders"),
        (PARTS, COLUMNS, "placeholders"),
        ([{"type": "file", "file": "a"}], {}, "wrong columns"),
        ([3], {}, "wrong columns"),
        ([{"type": "text", "text": None}], {}, "wrong columns"),
        (3, {}, "wrong columns"),
        ({"text": "?"}, {}, "wrong columns"),
    ],
)
def test_unreadable_message_raises_error_with_reason(content, columns, reason):
    with pytest.raises(RowError, match=r"^field prompt ") as caught:
        build(content, **columns)
    assert (caught.value.field, caught.value.reason) == ("prompt", reason)


@pytest.mark.parametrize(
    "messages", [None, "", "text", [], {}, 3, ["text"], [{"role": "user"}], [{"content": "?"}], [None]]
)
def test_invalid_messages_are_refused(messages):
    with pytest.raises(RowError, match=r"^field prompt ") as caught:
        build_messages({"prompt": messages}, "prompt", FIELDS, read)
    assert caught.value.reason == "wrong columns"
