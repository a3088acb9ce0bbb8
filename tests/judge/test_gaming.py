# SPDX-License-Identifier: Apache-2.0
"""What a policy could write to earn a reward without earning it: each row of `cases/gaming.json`, through our own code.

The judge of these tests believes everything that reaches it, so a row shows what stops an attack without a judge.
"""

import asyncio
import json

import pytest
from paths import ROOT, TABLES

from verl_p2r.accuracy import answer_accuracy
from verl_p2r.judge import Fact, FactsJudge, JudgeRequest, Verdict, ask
from verl_p2r.rewards import has_observation, perception_reward, reasoning_reward
from verl_p2r.segments import visible_lengths
from verl_p2r.settings import JudgeGuards, LengthBand, P2RSettings, ProcessSettings
from verl_p2r.template import ParsedResponse, parse_response

TABLE = json.loads((TABLES / "gaming.json").read_text(encoding="utf-8"))
HONEST, *ATTACKS = TABLE["attacks"]
BAND = ProcessSettings(LengthBand(*TABLE["bands"]))
SETTINGS = P2RSettings(perception=BAND, reasoning=BAND)
BOTH = JudgeGuards(answer_only=True, copied_question=True)


class Believer:
    """A judge that says Yes to everything."""

    async def judge(self, request):
        return Verdict(True, "I believe it")


class Letters:
    """A tokenizer whose every token is one character."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def text_of(part) -> str:
    return part if isinstance(part, str) else part["repeat"] * part["times"] + part.get("then", "")


def task_of(row: dict) -> dict:
    return TABLE["tasks"][row.get("task", "choice")]


def response_of(row: dict) -> str:
    """The whole response; what a row leaves out is honest."""
    if "response" in row:
        return row["response"]
    honest = {**TABLE["honest"], "answer": task_of(row)["solution"].removeprefix("<answer>").removesuffix("</answer>")}
    return "".join(f"<{tag}>{text_of(row.get(tag, honest[tag]))}</{tag}>" for tag in ("observation", "think", "answer"))


def verdict_of(judge, parsed: ParsedResponse, task: dict) -> bool | None:
    """The verdict as the reward manager gets it: no judge is asked without an observation."""
    if not has_observation(parsed):
        return False
    facts = Fact.parse_all(task["facts"])
    request = JudgeRequest(task["question"], task["solution"], parsed.observation, task["problem_type"], facts)
    return asyncio.run(ask(judge, request, BOTH)).value


def rewards_of(row: dict) -> tuple[list[float], list[float]]:
    """Accuracy, format and length reward of both processes if the judge believes everything."""
    text, task = response_of(row), task_of(row)
    parsed = parse_response(text)
    tokens = visible_lengths([ord(character) for character in text], Letters())
    perception = perception_reward(parsed, tokens[0], verdict_of(Believer(), parsed, task), SETTINGS)
    accuracy = answer_accuracy(task["problem_type"], parsed.answer or "", task["solution"], options=task["options"])
    reasoning = reasoning_reward(parsed, tokens[1], accuracy, SETTINGS)
    return [[round(one.accuracy, 2), one.format, one.length] for one in (perception, reasoning)]


@pytest.mark.parametrize("row", TABLE["attacks"], ids=lambda row: row["attack"])
def test_what_an_attack_earns(row):
    assert rewards_of(row) == [row["believed"], row["reasoning"]]
    verdict = verdict_of(FactsJudge(), parse_response(response_of(row)), task_of(row))
    assert verdict is {"Yes": True, "No": False}[row["facts"]]


def test_an_honest_response_earns_everything():
    assert (HONEST["believed"], HONEST["facts"], HONEST["reasoning"]) == ([1, 1, 0.2], "Yes", [1, 1, 0.2])


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row["attack"])
def test_an_attack_earns_less_or_says_which_judge_alone_can_stop_it(row):
    process = {"perception": "believed", "reasoning": "reasoning"}[row["process"]]
    earns_all = row[process] == HONEST[process]
    assert earns_all <= ("only" in row)


def test_the_table_covers_every_kind_of_reward_and_names_each_attack_once():
    names = [row["attack"] for row in ATTACKS]
    assert len(set(names)) == len(names) >= 35
    assert {row.get("task", "choice") for row in ATTACKS} == set(TABLE["tasks"])
    assert {row.get("only") for row in ATTACKS} == {None, "judge", "visual", "nothing"}


def test_the_page_shows_the_table():
    page = (ROOT / "docs" / "concepts" / "hard-to-game.md").read_text(encoding="utf-8")
    assert "{{ attacks perception }}" in page
    assert "{{ attacks reasoning }}" in page
