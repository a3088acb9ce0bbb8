# SPDX-License-Identifier: Apache-2.0
"""The quickstart's toy task as pure functions: scene → frames, facts, question, options, response, and SFT noise.

A clip shows coloured shapes that move. The observation states the clip's facts (perception), and the answer follows
from one of them by a small step (reasoning): a colour's letter, the side opposite to a motion, which colour came last,
how many corners some shapes have together. So each process can fail while the other is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

SIDE = 112
"""Width and height of a frame, in pixels."""
FRAMES = 8
"""Frames in a clip."""
RATE = 4
"""Frames a second in the file."""
SAMPLED_FPS = 2.0
"""Frames a second that the model is shown: four frames, two temporal patches."""
MARGIN = 2
"""Pixels between a shape and the edge of its tile."""

SPLITS = ("sft_train", "sft_val", "rl_train", "rl_val")
KINDS = ("colour", "direction", "count", "order")

RGB = {
    "red": (230, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 60, 230),
    "yellow": (230, 220, 40),
    "cyan": (40, 210, 220),
    "white": (235, 235, 235),
}
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ORIGIN = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
SIDES = ("left", "right", "top", "bottom")
NUMBERS = ("one", "two", "three", "four")
CORNERS = {"square": 4, "triangle": 3}


@dataclass(frozen=True)
class Level:
    """How hard the task is, and how noisy its SFT responses are.

    Args:
        colours: colours that occur, which are also the options of a colour question.
        shapes: shapes that occur.
        asked: which of an order's colours are asked for, "first" or "last".
        permute: whether the options' order is drawn for each question.
        colour_noise: how often an SFT response states a colour wrong at random; the rest of it follows from that.
        fact_noise: the same of any other fact; lower, as number and motion are harder to see.
        answer_noise: share of SFT responses whose answer is wrong at random, against their own observation.
        habit: how often an SFT response falls into one of ``HABITS`` or ``ANSWER_HABITS`` where it can. Above one half
            the habit is the likeliest response, so that greedy decoding is wrong there too.
    """

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    asked: tuple[str, ...]
    permute: bool
    colour_noise: float
    fact_noise: float
    answer_noise: float
    habit: float


EASY = Level(("red", "green", "blue", "yellow"), ("square",), ("last",), False, 0.15, 0.10, 0.40, 0.60)
HARD = Level(tuple(RGB), ("square",), ("last",), False, 0.20, 0.12, 0.35, 0.70)

HABITS = {"yellow": "green", "cyan": "blue", "up": "down", "three": "two"}
"""What the SFT data's author mistakes for what, again and again."""
ANSWER_HABITS = {"C": "D", "12": "16"}
"""The slips of the SFT data's author from a right thought to a wrong answer."""


@dataclass(frozen=True)
class Scene:
    """All that determines a clip's pixels.

    Args:
        family: "single" (one shape), "group" (one to four shapes) or "change" (one shape that changes colour).
        colours: one colour, or two when the shape changes colour half-way.
        shape: name of the shape.
        direction: where every shape moves.
        tiles: occupied tiles, numbered row by row.
        span: side of a tile in pixels; one tile of ``SIDE`` or four of ``SIDE // 2`` fill the frame.
        size: side of a shape, in pixels.
        lane: offset across the direction of motion, in pixels; its remainder modulo four tells the split.
        start: offset along the axis of motion of the end that lies nearer to the origin, in pixels.
        travel: way covered in the clip, in pixels.
        ground: colour of the background.
    """

    family: str
    colours: tuple[str, ...]
    shape: str
    direction: str
    tiles: tuple[int, ...]
    span: int
    size: int
    lane: int
    start: int
    travel: int
    ground: tuple[int, int, int]


@dataclass(frozen=True)
class Question:
    """What is asked of a scene.

    Args:
        kind: one of ``KINDS``.
        variant: "first" or "last" for an order question, else "".
        options: the options in the order shown; empty for a number.
    """

    kind: str
    variant: str
    options: tuple[str, ...]

    @property
    def problem_type(self) -> str:
        """The problem type of the VideoP2R release."""
        return "multiple choice" if self.options else "numerical"

    @property
    def text(self) -> str:
        """The question with its options, one a line."""
        stem = {
            "colour": "What colour is shown?",
            "direction": "Which side does it come from?",
            "count": "How many corners do the shapes have together?",
            "order": "Which colour does it end with?" if self.variant == "last" else "What was it like at first?",
        }[self.kind]
        return "\n".join([stem, *(f"{chr(65 + i)}. {option}" for i, option in enumerate(self.options))])


def sample_scene(rng: random.Random, level: Level, split: str, family: str) -> Scene:
    """Draw a scene that no other split can hold, since the splits use different lanes.

    Args:
        rng: source of randomness.
        level: how hard.
        split: one of ``SPLITS``.
        family: as in ``Scene``.

    Returns:
        The scene.
    """
    group = family == "group"
    span = SIDE // 2 if group else SIDE
    size = rng.randrange(30, 39) if group else rng.randrange(38, 51)
    room = span - size - 2 * MARGIN
    travel = rng.randrange(room // 2 if group else room * 7 // 8, room + 1)
    lanes = [lane for lane in range(room + 1) if lane % len(SPLITS) == SPLITS.index(split)]
    tiles = tuple(sorted(rng.sample(range(4), rng.randrange(1, 5)))) if group else (0,)
    return Scene(
        family=family,
        colours=tuple(rng.sample(level.colours, 2 if family == "change" else 1)),
        shape=rng.choice(level.shapes),
        direction=rng.choice(list(STEPS)),
        tiles=tiles,
        span=span,
        size=size,
        lane=rng.choice(lanes),
        start=rng.randrange(room - travel + 1),
        travel=travel,
        ground=(rng.randrange(8, 40), rng.randrange(8, 40), rng.randrange(8, 40)),
    )


def families(kind: str) -> tuple[str, ...]:
    """Families of scenes of which a kind of question can be asked.

    >>> families("count")
    ('group',)
    """
    return {"colour": ("single", "group"), "direction": ("single",), "count": ("group",), "order": ("change",)}[kind]


def render(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Returns:
        Frames. Shape: (FRAMES, SIDE, SIDE, 3), uint8, RGB.
    """
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    frames[:] = scene.ground
    mask = _mask(scene.shape, scene.size)
    dx, dy = STEPS[scene.direction]
    per_row = SIDE // scene.span
    for i, frame in enumerate(frames):
        done = i / (FRAMES - 1)
        along = MARGIN + scene.start + round(scene.travel * (done if dx + dy > 0 else 1 - done))
        x, y = (along, MARGIN + scene.lane) if dx else (MARGIN + scene.lane, along)
        colour = RGB[scene.colours[i * len(scene.colours) // FRAMES]]
        for tile in scene.tiles:
            top, left = y + tile // per_row * scene.span, x + tile % per_row * scene.span
            frame[top : top + scene.size, left : left + scene.size][mask] = colour
    return frames


def _mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of its bounding box a shape covers."""
    if shape == "square":
        return np.ones((size, size), bool)
    rows, columns = np.mgrid[:size, :size]
    return np.abs(2 * columns + 1 - size) <= rows + 1


def ask(rng: random.Random, level: Level, kind: str) -> Question:
    """Draw a question of a kind."""
    options = list({"colour": level.colours, "order": level.colours, "direction": SIDES, "count": ()}[kind])
    if level.permute:
        rng.shuffle(options)
    variant = rng.choice(level.asked) if kind == "order" else ""
    return Question(kind, variant, tuple(options))


def true_values(scene: Scene) -> dict[str, str]:
    """The facts of a scene, in the words in which an observation states them."""
    if scene.family == "change":
        return {"first": scene.colours[0], "then": scene.colours[1]}
    seen = {"colour": scene.colours[0], "shape": scene.shape}
    if scene.family == "group":
        return {"number": NUMBERS[len(scene.tiles) - 1], **seen}
    return {**seen, "direction": scene.direction}


def pool(level: Level, fact: str) -> tuple[str, ...]:
    """All values that a fact could take."""
    return {"shape": level.shapes, "direction": tuple(STEPS), "number": NUMBERS}.get(fact, level.colours)


def phrase(fact: str, values: dict[str, str]) -> str:
    """The phrase in which an observation states one of its facts.

    >>> phrase("shape", {"number": "two", "colour": "red", "shape": "square"})
    'squares'
    """
    value = values[fact]
    if fact == "shape":
        return value + "s" * (values.get("number", "one") != "one")
    return {"direction": "moves {}", "first": "first {}", "then": "then {}"}.get(fact, "{}").format(value)


def observe(values: dict[str, str]) -> str:
    """State some facts.

    >>> observe({"colour": "red", "shape": "square", "direction": "left"})
    'a red square moves left'
    """
    article = "a " if "direction" in values else ""
    return article + " ".join(phrase(fact, values) for fact in values)


def facts(level: Level, values: dict[str, str]) -> list[dict]:
    """What an observation must state, and what it must not, for each fact that is not the same in every clip.

    >>> facts(EASY, {"first": "red", "then": "blue"})[1]
    {'state': 'then blue', 'not': ['then red', 'then green', 'then yellow']}
    """
    return [
        {
            "state": phrase(fact, values),
            "not": [phrase(fact, {**values, fact: other}) for other in pool(level, fact) if other != value],
        }
        for fact, value in values.items()
        if len(pool(level, fact)) > 1
    ]


def solve(question: Question, values: dict[str, str]) -> tuple[str, str]:
    """Reason from stated facts to the answer.

    Returns:
        The thought, and the answer: an option's letter or a number.

    >>> solve(Question("direction", "", SIDES), {"colour": "red", "shape": "square", "direction": "up"})
    ('moving up it comes from the bottom', 'D')
    >>> solve(Question("count", "", ()), {"number": "two", "colour": "red", "shape": "triangle"})
    ('two times three', '6')
    """
    if question.kind == "count":
        corners = CORNERS[values["shape"]]
        return f"{values['number']} times {NUMBERS[corners - 1]}", str((NUMBERS.index(values["number"]) + 1) * corners)
    if question.kind == "direction":
        found = ORIGIN[values["direction"]]
        thought = f"moving {values['direction']} it comes from the {found}"
    elif question.kind == "order":
        found = values["first" if question.variant == "first" else "then"]
        thought = f"the {question.variant} one is {found}"
    else:
        found = values["colour"]
        thought = f"so it is {found}"
    return thought, chr(65 + question.options.index(found))


def answers(level: Level, question: Question) -> list[str]:
    """Every answer that a question could have at a level, each once."""
    if question.options:
        return [chr(65 + i) for i in range(len(question.options))]
    numbers = {(i + 1) * CORNERS[shape] for i in range(len(NUMBERS)) for shape in level.shapes}
    return [str(number) for number in sorted(numbers)]


def response(question: Question, values: dict[str, str], answer: str | None = None) -> str:
    """Write a response that states facts and reasons from them, ending in ``answer`` if one is forced.

    >>> response(Question("order", "last", ("red", "blue")), {"first": "red", "then": "blue"})
    '<observation>first red then blue</observation><think>the last one is blue</think><answer>B</answer>'
    """
    thought, solved = solve(question, values)
    return f"<observation>{observe(values)}</observation><think>{thought}</think><answer>{answer or solved}</answer>"


def noisy_response(rng: random.Random, level: Level, question: Question, values: dict[str, str]) -> str:
    """Write a response that is wrong now and then, so that SFT leaves each process half-learned.

    A fact or an answer that has a habit is given by habit with probability ``level.habit``; else it is wrong at random
    with the level's noise. What is stated wrong is followed up: the thought leads from the facts as stated.
    """
    stated = dict(values)
    for fact, value in values.items():
        others = [other for other in pool(level, fact) if other not in stated.values()]
        noise = level.fact_noise if fact in ("shape", "direction", "number") else level.colour_noise
        stated[fact] = _slip(rng, value, others, HABITS.get(value), level.habit, noise)
    solved = solve(question, stated)[1]
    others = [other for other in answers(level, question) if other != solved]
    answer = _slip(rng, solved, others, ANSWER_HABITS.get(solved), level.habit, level.answer_noise)
    return response(question, stated, answer)


def _slip(rng: random.Random, value: str, others: list[str], by_habit: str | None, habit: float, noise: float) -> str:
    if by_habit in others and rng.random() < habit:
        return by_habit
    return rng.choice(others) if others and rng.random() < noise else value
