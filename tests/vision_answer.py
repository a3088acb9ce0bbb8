# SPDX-License-Identifier: Apache-2.0
"""What the test server says of frames: it decodes them, and names the colour and the number that it really got.

As a judge it says Yes when the frames show every colour that the observation names.

The question may ask for what models do wrong: `[wrong]` an answer that is not right, `[blind]` an observation that
does not tell, `[bare]` the answer without the template, `[empty]` nothing.
"""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200)}


SHADES = {  # as in the clips of `judge/visual_cases.py` and the health check's picture
    "red": (220, 25, 25),
    "green": (30, 180, 40),
    "blue": (40, 70, 230),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
}
SEEN = 50  # pixels of a colour in all frames together, every fourth row and column


def verdict(body: dict[str, Any], observation: str) -> str:
    """Look for the colours that an observation names."""
    pixels = np.stack(frames_of(body))[:, ::4, ::4].astype(np.int16)
    named = [name for name in SHADES if re.search(rf"\b{name}\b", observation)]
    seen = [name for name in named if (np.abs(pixels - np.int16(SHADES[name])).max(-1) < 30).sum() >= SEEN]
    return "Yes" if named == seen else "No"


def frames_of(body: dict[str, Any]) -> list[np.ndarray]:
    """The frames of a request. Each: (height, width, 3), uint8."""
    frames = []
    for part in body["messages"][-1]["content"]:
        if part["type"] not in ("image_url", "video_url"):
            continue
        head, _, data = part[part["type"]]["url"].partition(";base64,")
        assert head == {"image_url": "data:image/jpeg", "video_url": "data:video/jpeg"}[part["type"]], head
        for one in data.split(","):
            frames.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")))
    return frames


def respond(body: dict[str, Any], prompt: str) -> str:
    """A response in the template."""
    frames = frames_of(body)
    middle = frames[-1][frames[-1].shape[0] // 2, frames[-1].shape[1] // 2].astype(int)
    colour = min(COLOURS, key=lambda name: int(np.abs(middle - COLOURS[name]).sum()))
    option = re.search(rf"^([A-D])\. {colour}$", prompt, re.MULTILINE)
    answer = option[1] if option else colour
    if "[wrong]" in prompt:
        answer = "D"
    if "[empty]" in prompt:
        return ""
    if "[bare]" in prompt:
        return answer
    seen = "something" if "[blind]" in prompt else f"a {colour} ball"
    height, width = frames[-1].shape[:2]
    return (
        f"<observation>Based on the question, I need to notice {seen} in {len(frames)} frames of {width} x {height}."
        f"</observation>\n<think>Based on the observations, it is {colour}.</think>\n<answer>{answer}</answer>"
    )
