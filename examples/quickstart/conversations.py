# SPDX-License-Identifier: Apache-2.0
"""A row of verl's parquet as the messages of a chat, for everything here that asks a model about a video."""

from collections.abc import Sequence


def conversation(prompt: Sequence[dict], videos: Sequence[dict]) -> list[dict]:
    """Put a row's video where its prompt says `<video>`."""
    messages = []
    for message in prompt:
        content = message["content"]
        if content.startswith("<video>"):
            video = {name: value for name, value in videos[0].items() if value is not None}
            content = [{"type": "video", **video}, {"type": "text", "text": content.removeprefix("<video>")}]
        messages.append({"role": message["role"], "content": content})
    return messages
