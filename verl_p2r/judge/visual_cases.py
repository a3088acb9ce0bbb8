# SPDX-License-Identifier: Apache-2.0
"""Sixty labelled cases for the judge `visual`, made by code: thirty clips, each with a true and an untrue observation.

    python -m verl_p2r.judge.visual_cases FOLDER     writes FOLDER/cases.jsonl and FOLDER/videos/

The clips show coloured squares and circles that move, appear or change colour for four seconds. Both observations of a
clip read as sufficient. An untrue one differs from the true one in a single statement:

    wrong evidence      the statement that the answer follows from
    wrong detail        another statement; the answer that follows is the correct one
    invented object     an additional object that the clip does not show

A judge that never looks can only guess which of the two is true where the answer is the same.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE, FRAMES, RATE = 224, 16, 4  # pixels, frames, frames per second
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 70, 230),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 190),
    "white": (240, 240, 240),
}
GROUND = (40, 40, 40)
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROUTES = {
    "left": "from the right side to the left side",
    "right": "from the left side to the right side",
    "up": "from the bottom to the top",
    "down": "from the top to the bottom",
}
NUMBERS = ("no", "one", "two", "three", "four")
_NAMES = tuple(COLOURS)
_TURNED = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class Sprite:
    """A shape in a clip.

    Args:
        colour: One of `COLOURS`.
        shape: `square` or `circle`.
        centre: Its first place: x and y, in pixels.
        way: One of `WAYS` in which it moves, or an empty text.
        first: The first frame that shows it.
        last: The last frame that shows it.
        size: Its width, in pixels.
    """

    colour: str
    shape: str = "square"
    centre: tuple[int, int] = (SIDE // 2, SIDE // 2)
    way: str = ""
    first: int = 0
    last: int = FRAMES - 1
    size: int = 48


@dataclass(frozen=True)
class Clip:
    """A clip with its question and its two observations.

    Args:
        sprites: What it shows.
        problem_type: The problem type of the question.
        question: The question, with its options.
        solution: The correct answer.
        true: The true observation.
        untrue: The untrue one.
        kind: How it is untrue, see the module.
    """

    sprites: tuple[Sprite, ...]
    problem_type: str
    question: str
    solution: str
    true: str
    untrue: str
    kind: str


def draw(sprites: tuple[Sprite, ...]) -> np.ndarray:
    """Draw a clip.

    Returns:
        Shape: (FRAMES, SIDE, SIDE, 3), uint8, RGB.
    """
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    frames[:] = GROUND
    y, x = np.mgrid[:SIDE, :SIDE]
    step = (SIDE - 64) / (FRAMES - 1)
    for sprite in sprites:
        dx, dy = WAYS.get(sprite.way, (0, 0))
        for i in range(sprite.first, sprite.last + 1):
            across = np.abs(x - sprite.centre[0] - dx * step * i), np.abs(y - sprite.centre[1] - dy * step * i)
            distance = np.maximum(*across) if sprite.shape == "square" else np.hypot(*across)
            frames[i][distance <= sprite.size / 2] = COLOURS[sprite.colour]
    return frames


def clips() -> list[Clip]:
    """Return the thirty clips, in five families of six."""
    return [family(i) for family in (_colour, _direction, _count, _order, _moment) for i in range(6)]


def write_cases(folder: Path) -> Path:
    """Write the cases and their clips.

    Args:
        folder: Created if missing.

    Returns:
        The file of cases, for `evaluation.load_cases` and `verl-p2r judge-eval --cases`.
    """
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, clip in enumerate(clips()):
        name = f"videos/{number:02}.mp4"
        _write_video(folder / name, draw(clip.sprites))
        lines += [json.dumps(row) for row in _rows(clip, name, number)]
    path = folder / "cases.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _rows(clip: Clip, video: str, number: int) -> Iterator[dict[str, Any]]:
    for observation, label, kind in ((clip.true, "Yes", "true"), (clip.untrue, "No", clip.kind)):
        yield {
            "id": f"clip-{number:02}-{'true' if label == 'Yes' else 'untrue'}",
            "problem_type": clip.problem_type,
            "question": clip.question,
            "solution": f"<answer>{clip.solution}</answer>",
            "observation": observation,
            "label": label,
            "kind": kind,
            "video": video,
        }


def _write_video(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "12"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _untrue(i: int, evidence: str, detail: str, true: str, absent: str) -> dict[str, str]:
    """Choose the kind of untruth in turn."""
    kind, text = (
        ("wrong evidence", evidence),
        ("wrong detail", detail),
        ("invented object", f"{true} A {absent} triangle lies still in a corner all the time."),
    )[i % 3]
    return {"true": true, "untrue": text, "kind": kind}


def _asked(stem: str, options: list[str], answer: str) -> dict[str, str]:
    """Write a multiple choice question; the answer's place follows from the options' order."""
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    question = "\n".join([stem, "Options:", *lines])
    return {
        "problem_type": "multiple choice",
        "question": question,
        "solution": "ABCD"[options.index(answer)],
    }


def _options(i: int, answer: str, names: tuple[str, ...]) -> list[str]:
    """Return four names; the answer takes each place in turn."""
    others = [name for name in names if name != answer][:3]
    return [*others[: i % 4], answer, *others[i % 4 :]]


def _start(way: str) -> tuple[int, int]:
    """Where a shape starts that crosses the picture in this way."""
    dx, dy = WAYS[way]
    half = SIDE // 2
    return half - dx * (half - 32), half - dy * (half - 32)


def _colour(i: int) -> Clip:
    colour, other, absent = (_NAMES[(i + shift) % 6] for shift in (0, 2, 4))
    way = tuple(WAYS)[i % 4]
    text = "A single {} square crosses the picture {} at an even pace, in front of a plain dark ground."
    return Clip(
        (Sprite(colour, centre=_start(way), way=way),),
        **_asked("Which colour is the square?", _options(i, colour, _NAMES), colour),
        **_untrue(
            i,
            text.format(other, ROUTES[way]),
            text.format(colour, ROUTES[_TURNED[way]]),
            text.format(colour, ROUTES[way]),
            absent,
        ),
    )


def _direction(i: int) -> Clip:
    colour, other, absent = (_NAMES[(i + shift) % 6] for shift in (1, 3, 5))
    way = tuple(WAYS)[(i + 1) % 4]
    text = "A {} circle travels {} in four seconds, without a stop, in front of a plain dark ground."
    return Clip(
        (Sprite(colour, "circle", _start(way), way),),
        **_asked("In which direction does the circle move?", list(WAYS), way),
        **_untrue(
            i,
            text.format(colour, ROUTES[_TURNED[way]]),
            text.format(other, ROUTES[way]),
            text.format(colour, ROUTES[way]),
            absent,
        ),
    )


def _count(i: int) -> Clip:
    colour, other, absent = (_NAMES[(i + shift) % 6] for shift in (2, 4, 0))
    number = 2 + i % 2
    places = ((56, 64), (168, 64), (112, 160), (56, 160))[:number]
    text = "The picture shows {} {} squares on a plain dark ground. None of the squares moves in four seconds."
    wrong = text.format(NUMBERS[number + 1], colour)
    return Clip(
        tuple(Sprite(colour, centre=place) for place in places),
        "numerical",
        "How many squares are there?",
        str(number),
        **_untrue(i, wrong, text.format(NUMBERS[number], other), text.format(NUMBERS[number], colour), absent),
    )


def _order(i: int) -> Clip:
    before, after, absent = (_NAMES[(i + shift) % 6] for shift in (3, 5, 1))
    late = i % 2 == 0
    change = FRAMES * 3 // 4 if late else FRAMES // 4  # frame: 3 or 1 seconds
    text = "A square stands in the middle. It is {} at first, turns {} after about {} and stays so to the end."
    seconds = ("3 seconds", "1 second") if late else ("1 second", "3 seconds")
    square = Sprite(before, last=change - 1, size=80)
    return Clip(
        (square, replace(square, colour=after, first=change, last=FRAMES - 1)),
        **_asked("Which colour does the square have at the end?", _options(i, after, _NAMES), after),
        **_untrue(
            i,
            text.format(after, before, seconds[0]),
            text.format(before, after, seconds[1]),
            text.format(before, after, seconds[0]),
            absent,
        ),
    )


def _moment(i: int) -> Clip:
    colour, other, absent = (_NAMES[(i + shift) % 6] for shift in (4, 0, 2))
    second = 1 + i % 3
    wrong = 3 if second == 1 else 1
    text = (
        "The dark picture is empty at first. At about {:.1f} seconds a {} square appears in the middle and stays there."
    )
    return Clip(
        (Sprite(colour, first=second * RATE, size=80),),
        "regression",
        "After how many seconds does the square appear?",
        str(second),
        **_untrue(i, text.format(wrong, colour), text.format(second, other), text.format(second, colour), absent),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the labelled cases of the judge visual.")
    parser.add_argument("folder", type=Path, help="folder to write")
    print(write_cases(parser.parse_args().folder))
