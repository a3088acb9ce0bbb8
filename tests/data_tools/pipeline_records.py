# SPDX-License-Identifier: Apache-2.0
"""Records with media whose answer only pixels tell: each shows a ball of one colour."""

from pathlib import Path

import av
import numpy as np
from PIL import Image
from vision_answer import COLOURS

NAMES = tuple(COLOURS)
OPTIONS = [f"{letter}. {name}" for letter, name in zip("ABC", NAMES, strict=True)] + ["D. yellow"]


def write_image(path: Path, colour: str, size: tuple[int, int] = (120, 90)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)
    return path


def write_video(path: Path, colour: str, frames: int = 12, rate: int = 4, size: tuple[int, int] = (120, 90)) -> Path:
    """All frames grey but the last, which holds the colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), COLOURS[colour] if i == frames - 1 else (90, 90, 90), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_records(root: Path, count: int, *, videos: int = 2, marks: tuple[str, ...] = ("",)) -> list[dict]:
    """`count` records over three images and some videos, what they ask for in turn from `marks`."""
    media = [write_image(root / f"img/{name}.png", name) for name in NAMES]
    media += [write_video(root / f"vid/{NAMES[i % 3]}{i}.mp4", NAMES[i % 3]) for i in range(videos)]
    records = []
    for i in range(count):
        path = media[i % len(media)]
        colour = next(name for name in NAMES if path.stem.startswith(name))
        records.append(
            {
                "problem_id": i,
                "problem": f"What colour has ball {i}? {marks[i % len(marks)]}".strip() + "\n",
                "problem_type": "multiple choice",
                "options": OPTIONS,
                "data_type": "image" if path.suffix == ".png" else "video",
                "path": f"./{path.relative_to(root)}",
                "solution": f"<answer>{'ABC'[NAMES.index(colour)]}</answer>",
                "kept_as_it_was": {"number": i},
            }
        )
    return records
