# SPDX-License-Identifier: Apache-2.0
"""The quickstart's toy task: pixels, facts, answers and noise."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from quickstart_data import LEVELS, RESPONSE, VARIED, draws, pixels_of, task

from verl_p2r.judge import JudgeRequest, get_judge

# --- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_show_the_stated_facts(level):
    for _, _, scene in draws(LEVELS[level], 200):
        frames, values = task.render(scene), task.true_values(scene)
        first, last = frames[0], frames[-1]
        start, end = pixels_of(first, scene.colours[0]).mean(0), pixels_of(last, scene.colours[-1]).mean(0)
        dx, dy = task.STEPS[scene.direction]
        moved = end - start
        assert np.sign(np.round(moved)).tolist() == [dy, dx]
        area = len(pixels_of(first, scene.colours[0]))
        assert area == len(scene.tiles) * area_of(scene)
        assert {colour for colour in task.RGB if len(pixels_of(first, colour))} == {scene.colours[0]}
        assert {colour for colour in task.RGB if len(pixels_of(last, colour))} == {scene.colours[-1]}
        assert values.get("number", "one") == task.NUMBERS[len(scene.tiles) - 1]
        assert values.get("direction", scene.direction) == scene.direction
        assert values.get("then", scene.colours[-1]) == scene.colours[-1]


def area_of(scene) -> int:
    """Pixels of one shape, counted row by row: the slow reference."""
    if scene.shape == "square":
        return scene.size**2
    return sum(abs(2 * c + 1 - scene.size) <= r + 1 for r in range(scene.size) for c in range(scene.size))


def test_colour_change_falls_between_sampled_frames():
    # 8 frames sampled at linspace(0, 7, 4) -> 0, 2, 5, 7: two frames a temporal patch, one colour each.
    scene = next(s for _, kind, s in draws(task.EASY, 8) if kind == "order")
    frames = task.render(scene)
    for i, colour in zip((0, 2, 5, 7), (0, 0, 1, 1), strict=True):
        assert len(pixels_of(frames[i], scene.colours[colour]))


@pytest.mark.parametrize(
    ("kind", "variant", "values", "answer"),
    [
        ("colour", "", {"colour": "blue", "shape": "square", "direction": "up"}, "C"),
        ("direction", "", {"colour": "blue", "shape": "square", "direction": "left"}, "B"),  # from the right
        ("direction", "", {"colour": "blue", "shape": "square", "direction": "down"}, "C"),  # from the top
        ("order", "first", {"first": "yellow", "then": "red"}, "D"),
        ("order", "last", {"first": "yellow", "then": "red"}, "A"),
        ("count", "", {"number": "three", "colour": "red", "shape": "square"}, "12"),
        ("count", "", {"number": "three", "colour": "red", "shape": "triangle"}, "9"),
    ],
)
def test_solve_returns_hand_worked_answers(kind, variant, values, answer):
    question = dataclasses.replace(task.ask(random.Random(0), task.EASY, kind), variant=variant)
    assert task.solve(question, values)[1] == answer
    observation, thought, given = RESPONSE.fullmatch(task.response(question, values)).groups()
    assert given == answer
    assert task.observe(values) == observation
    assert thought


@pytest.mark.parametrize("level", LEVELS)
def test_facts_accept_only_true_observations(level):
    for _, _, scene in draws(LEVELS[level], 80):
        values = task.true_values(scene)
        facts = task.facts(LEVELS[level], values)
        truth = f" {task.observe(values)} "
        assert all(f" {fact['state']} " in truth for fact in facts)
        assert not any(f" {other} " in truth for fact in facts for other in fact["not"])
        for fact, value in values.items():
            for other in task.pool(LEVELS[level], fact):
                if other != value:
                    lie = f" {task.observe({**values, fact: other})} "
                    assert not all(f" {fact['state']} " in lie for fact in facts), lie


def test_permuted_options_still_lead_to_the_answer():
    orders = set()
    for rng, kind, scene in draws(VARIED, 80):
        question, values = task.ask(rng, VARIED, kind), task.true_values(scene)
        orders.add(question.options)
        thought, answer = task.solve(question, values)
        if question.options:
            assert thought.split()[-1] == question.options[ord(answer) - 65]
            assert f"{answer}. {thought.split()[-1]}" in question.text.splitlines()
    assert len(orders) > 20


def test_noise_rates_match_level():
    counts: Counter = Counter()
    for rng, kind, scene in draws(task.EASY, 8000):
        question, values = task.ask(rng, task.EASY, kind), task.true_values(scene)
        text = task.noisy_response(rng, task.EASY, question, values)
        observation, thought, answer = RESPONSE.fullmatch(text).groups()
        stated = next(
            v
            for combination in itertools.product(*(task.pool(task.EASY, fact) for fact in values))
            if task.observe(v := dict(zip(values, combination, strict=True))) == observation
        )
        assert stated.get("first", 0) != stated.get("then", 1)
        expected = task.solve(question, stated)
        assert thought == expected[0], "the thought follows what is stated, wrong or not"
        slips = {
            fact: (values[fact], stated[fact], task.HABITS)
            for fact in ("colour", "direction", "number")
            if fact in values
        }
        slips["answer"] = (expected[1], answer, task.ANSWER_HABITS)
        for name, (right, given, habits) in slips.items():
            if right in habits:
                counts[f"{name} by habit", given == habits[right]] += 1
            else:
                counts[name, given != right] += 1

    def rate(name: str) -> float:
        return counts[name, True] / (counts[name, True] + counts[name, False])

    # 1,200 draws or more each: three standard deviations are at most 0.035.
    assert rate("answer") == pytest.approx(task.EASY.answer_noise, abs=0.035)
    assert rate("colour") == pytest.approx(task.EASY.colour_noise, abs=0.035)
    assert rate("direction") == pytest.approx(task.EASY.fact_noise, abs=0.035)
    assert rate("number") == pytest.approx(task.EASY.fact_noise, abs=0.035)
    # 400 draws or more: what the habit leaves may fall on the same value by chance, one in three of the noise.
    for name, noise in (("answer", "answer"), ("colour", "colour"), ("direction", "fact"), ("number", "fact")):
        by_chance = (1 - task.EASY.habit) * getattr(task.EASY, f"{noise}_noise") / 3
        assert rate(f"{name} by habit") == pytest.approx(task.EASY.habit + by_chance, abs=0.075)


def test_the_lying_judge_believes_everything():
    judge = get_judge("lying_judge:LyingJudge")
    assert asyncio.run(judge.judge(JudgeRequest("Which?", "A", "nothing at all"))).value is True
