# SPDX-License-Identifier: Apache-2.0
"""Makes pictures of a record's medium for a page: what a model sees, as data URLs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from verl_p2r.media.local_files import is_local_file

SIDES = (448, 320, 224, 160, 112)  # longest sides of a picture, in pixels; the first with which all fit is taken
QUALITY = 80  # JPEG quality
MESSAGE = 600  # characters shown of an error


@dataclass(frozen=True)
class Picture:
    """A picture of a medium: its data URL, its size in pixels, and its time in the video, in seconds."""

    url: str
    width: int
    height: int
    seconds: float | None = None


@dataclass(frozen=True)
class Pictures:
    """The pictures of a medium, or the error shown instead.

    Args:
        pictures: the pictures.
        seen: number of frames that training samples.
        error: why there are no pictures.
        bytes: size of all data URLs.
    """

    pictures: Sequence[Picture] = ()
    seen: int = 0
    error: str = ""
    bytes: int = field(default=0, compare=False)


def pictures_of(element: Mapping[str, Any], frames: int, room: int) -> Pictures:
    """Read the pictures of a medium.

    Args:
        element: from `Medium.element`.
        frames: the most pictures of a video; they are spread evenly over the frames that training samples.
        room: limit on their size in base64, in bytes; they are shrunk until they fit.

    Returns:
        The pictures, or an error if the medium cannot be read.
    """
    path = Path(element.get("image") or element["video"])
    try:
        shown, seen = _image(element) if "image" in element else _frames(element, frames)
        for side in SIDES:
            pictures = [_picture(image, side, seconds) for image, seconds in shown]
            size = sum(len(picture.url) for picture in pictures)
            if size <= room:
                return Pictures(pictures, seen, bytes=size)
        return Pictures(error=f"{path}: its pictures do not fit on the page: ask for fewer records or frames")
    except Exception as error:  # decoders may raise anything on damaged files; the other records are shown
        if not is_local_file(path):
            return Pictures(error=f"{path} does not exist: unpack it there, or set the media root")
        text = str(error)
        text = text if str(path) in text else f"{path}: {type(error).__name__}: {text}"
        return Pictures(error=text[:MESSAGE])


def _image(element: Mapping[str, Any]) -> tuple[list[tuple[Image.Image, float | None]], int]:
    from verl_p2r.media.images import read_image  # imports torch, 0.2 GB

    return [(read_image(element), None)], 1


def _frames(element: Mapping[str, Any], frames: int) -> tuple[list[tuple[Image.Image, float | None]], int]:
    from verl_p2r.media.decode import decode_chosen
    from verl_p2r.media.rules import TRAINING

    taken = 0

    def some(indices: Sequence[int]) -> list[int]:
        nonlocal taken
        taken, most = len(indices), min(frames, len(indices))
        return [indices[round(i * (taken - 1) / max(most - 1, 1))] for i in range(most)]

    pixels, seconds = decode_chosen(TRAINING.fill(element), some, _fitted)
    return list(zip(map(Image.fromarray, pixels), seconds, strict=True)), taken


def _fitted(height: int, width: int) -> tuple[int, int]:
    """Return the size of a frame, shrunk to the longest side of a picture if it is larger."""
    scale = min(SIDES[0] / max(height, width), 1)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _picture(image: Image.Image, side: int, seconds: float | None) -> Picture:
    small = image.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(url, small.width, small.height, seconds)
