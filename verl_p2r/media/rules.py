# SPDX-License-Identifier: Apache-2.0
"""Rules of sampling and size: what an element of a message may set, and what applies where it sets nothing.

This module imports neither numpy nor torch, so that a command that only reads settings starts fast.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from verl_p2r.media.deadline import RulesError
from verl_p2r.media.source import name_of

PIXELS_PER_TOKEN = 28 * 28  # those of the paper's models, whose pixel budgets are used for all families
MOST = {  # largest accepted value of each rule
    "fps": 1000,
    "sample_fps": 1000,
    "nframes": 1 << 16,
    "min_frames": 1 << 16,
    "max_frames": 1 << 16,
    "video_start": 1e9,
    "video_end": 1e9,
    "min_pixels": 1 << 40,
    "max_pixels": 1 << 40,
    "total_pixels": 1 << 40,
    "resized_height": 1 << 14,
    "resized_width": 1 << 14,
}
RATES, TIMES = ("fps", "sample_fps"), ("video_start", "video_end")  # a time before the start means the start


@dataclass(frozen=True)
class MediaSettings:
    """Sampling and sizes of media whose messages do not set them; the defaults are the paper's for training.

    Args:
        fps: frames taken per second of video.
        min_frames: fewest frames taken of a video.
        max_frames: most frames taken of a video.
        video_min_pixels: smaller frames are enlarged to about this size, in pixels. [ours]: Video-R1's.
        video_max_pixels: largest size of a frame, in pixels.
        image_max_pixels: largest size of an image, in pixels.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 16
    video_min_pixels: int = 128 * PIXELS_PER_TOKEN
    video_max_pixels: int = 128 * PIXELS_PER_TOKEN
    image_max_pixels: int = 256 * PIXELS_PER_TOKEN

    def fill(self, element: Mapping[str, Any]) -> dict[str, Any]:
        """Add the missing fields to a message element; its own fields win, and `nframes` excludes `fps`.

        Args:
            element: a video or image element of a message; `resized_height` and `resized_width` set its size.

        Returns:
            A new element, without fields that are None.

        Raises:
            RulesError: a rule is not a number in its range.

        >>> MediaSettings().fill({"type": "video", "video": "a.mp4", "nframes": 8})["max_pixels"]
        100352
        >>> MediaSettings().fill({"type": "image", "image": "a.png", "max_pixels": 50176})
        {'type': 'image', 'image': 'a.png', 'max_pixels': 50176}
        """
        own = checked(element)
        sized = "resized_height" in own and "resized_width" in own
        fill: dict[str, Any] = {}
        if "video" in own and "nframes" not in own:
            most = max(self.max_frames, own.get("min_frames", 0))
            fill |= {"fps": self.fps, "min_frames": self.min_frames, "max_frames": most}
        if "video" in own and not sized:
            most = max(self.video_max_pixels, own.get("min_pixels", 0))
            fill |= {"min_pixels": min(self.video_min_pixels, own.get("max_pixels", most)), "max_pixels": most}
        if "image" in own and not sized:
            fill["max_pixels"] = max(self.image_max_pixels, own.get("min_pixels", 0))
        return own | {key: value for key, value in fill.items() if key not in own}


TRAINING = MediaSettings()
EVALUATION = MediaSettings(max_frames=32, video_max_pixels=256 * PIXELS_PER_TOKEN)


def checked(element: Mapping[str, Any]) -> dict[str, Any]:
    """Check that the sampling and size rules of an element are finite numbers in their ranges.

    Args:
        element: a video or image element.

    Returns:
        A copy without the fields that are None, which count as not given.

    Raises:
        RulesError: a rule is out of its range; the message names it.
    """
    for rule, most in MOST.items():
        value = element.get(rule)
        if value is None:
            continue
        number = isinstance(value, Real) and not isinstance(value, bool)
        least = -most if rule in TIMES else math.nextafter(0, 1) if rule in RATES else 0
        if not number or not math.isfinite(value) or not least <= value <= most:
            raise RulesError(
                f"{name_of(element)}: its sampling rules cannot be met: {rule} is {value!r}: give a positive number, "
                f"at most {most:g}"
            )
    return {key: value for key, value in element.items() if value is not None}
