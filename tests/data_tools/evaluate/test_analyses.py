# SPDX-License-Identifier: Apache-2.0
"""The paper's two analyses on runs whose replies are known."""

import json
import re

import pytest
from evaluated_run import make_run, response
from text_server import text_server
from typer.testing import CliRunner

from data_tools.evaluate.cli import app

REPLIES = {  # the right answers of MMVU's items are A, B, C, A, …: red, green, blue
    "validation_0": response("A red ball rolls.", "So the answer is A.", "A"),
    "validation_1": response("A green ball rolls.", "So the answer is A.", "B"),  # differs, by the rule
    "validation_2": response("A blue ball rolls.", "It looks blue to me.", "C"),  # for the judge
    "validation_3": response("A red ball rolls.", "Hard to say.", "A"),  # neither can read it
    "validation_4": "I think it is B",  # not in the template
    "validation_5": None,  # lost
}


def invoke(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_mismatch_asks_judge_only_when_rule_cannot_read_option(tmp_path):
    run = make_run(tmp_path, REPLIES)

    def judge(prompt):
        return "<option>B</option>" if "It looks blue to me" in prompt else "<option>none</option>"

    with text_server(judge) as (url, prompts):
        output = invoke("mismatch", run, "--out", tmp_path / "mm", "--model", "judge", "--base-url", url)
    assert len(prompts) == 2
    assert all("So the answer is" not in prompt for prompt in prompts)
    # Nothing but the question, its options and the thinking: not the answer, not the observation.
    assert all("ball rolls" not in prompt and "<answer>" not in prompt for prompt in prompts)
    tables = json.loads((tmp_path / "mm" / "mismatch.json").read_text())
    assert tables["all"] == tables["mmvu"]
    assert (tables["all"]["n"], tables["all"]["read"]) == (4, 3)
    assert tables["all"]["mismatch"] == pytest.approx(2 / 3)
    assert tables["all"]["table"] == {"right": {"right": 1, "wrong": 0}, "wrong": {"right": 2, "wrong": 0}}
    assert "at most 32 frames" in output
    assert "| MMVU | 4 | 3 | 66.7 |" in output


def test_mismatch_without_a_judge_uses_the_rule_alone(tmp_path):
    run = make_run(tmp_path, REPLIES)
    output = invoke("mismatch", run, "--out", tmp_path / "mm")
    assert "judge none, rule only" in output
    tables = json.loads((tmp_path / "mm" / "mismatch.json").read_text())
    assert (tables["all"]["read"], tables["all"]["mismatch"]) == (2, 0.5)
    assert tables["all"]["unread_thinking"] == 0.5


def test_a_mismatch_of_nothing_is_not_printed_as_zero(tmp_path):
    run = make_run(tmp_path, {"validation_0": response("o", "Hard to say.", "A")})
    assert "| all | 1 | 0 | – | – | 100.0 |" in invoke("mismatch", run, "--out", tmp_path / "mm")


def test_readers_of_thinking_are_measured_on_labelled_cases():
    """The judge says B to everything that the rule cannot read."""
    output = invoke("mismatch-eval")
    assert "| rule alone | 36 | 58.3 | 42.2–72.9 | 0.0 | 41.7 |" in output
    assert "judge" not in output
    with text_server(lambda prompt: "<option>B</option>") as (url, prompts):
        output = invoke("mismatch-eval", "--model", "judge", "--base-url", url)
    # The rule reads 12 of 36. Of the 24 others, 7 are B, 8 another letter, and 9 conclude with none.
    assert len(prompts) == 24
    assert "| rule, then the judge | 36 | 52.8 |" in output
    assert "| 47.2 | 0.0 |" in output
    assert all("<answer>" not in prompt for prompt in prompts)


def test_sufficiency_passes_score_observation_and_controls(tmp_path):
    """The text model answers with the colour it reads, and A without one."""
    run = make_run(tmp_path, REPLIES)

    def model(prompt):
        seen = re.search(r"seen in a video:\n.*?(red|green|blue)", prompt)
        letter = {"red": "A", "green": "B", "blue": "C"}[seen[1]] if seen else "A"
        return f"<think>…</think><answer>{letter}</answer>"

    with text_server(model) as (url, prompts):
        output = invoke("sufficiency", run, "--out", tmp_path / "s", "--model", "text", "--base-url", url)
    result = json.loads((tmp_path / "s" / "sufficiency.json").read_text())
    # Six items. Four have an observation, and each of these suffices.
    assert result["observation"]["mmvu"]["score"] == pytest.approx(4 / 6)
    # The question alone is asked of the five that were answered; A is right for items 0 and 3.
    assert result["question"]["mmvu"]["score"] == pytest.approx(2 / 6)
    # The observation two items further on, of items 0 to 3: blue, red, red, green; none is right but by chance.
    assert result["other"]["mmvu"]["score"] == 0
    assert result["names_answer"]["mmvu"] == 0
    assert len(prompts) == 4 + 5 + 4
    assert all("Based on the question" not in prompt and "image_url" not in prompt for prompt in prompts)
    assert "| MMVU | 66.7" in output
    assert "text-only model text, prompt chain_of_thought" in output


def test_sufficiency_fails_when_items_have_no_reply(tmp_path, judge_server):
    """Refused items would count as 0, so the command fails; a missing observation is not a failure."""
    run = make_run(tmp_path, REPLIES)
    judge_server.control(rules=[{"contains": "A green ball rolls", "fault": "400"}])
    command = ["sufficiency", run, "--out", tmp_path / "s", "--model", "judge", "--base-url", judge_server.base_url]
    done = CliRunner().invoke(app, [*map(str, command), "--pass", "observation"])
    assert done.exit_code == 1, done.output
    assert "refused: 1" in done.output
    assert "dropped, no observation: 1" in done.output
    assert "start again, which asks only the items without a reply" in done.output
    judge_server.control()
    moved = (tmp_path / "prepared").rename(tmp_path / "elsewhere")
    prepared = ["--prepared", moved / "mmvu"]
    assert "4 kept" in invoke(*command, "--pass", "observation", *prepared)
    assert "judge none" in invoke("mismatch", run, "--out", tmp_path / "mm", *prepared)


def test_a_run_without_observations_has_a_sufficiency_of_zero(tmp_path, judge_server):
    run = make_run(tmp_path, {"validation_0": "A"})
    command = ["sufficiency", run, "--out", tmp_path / "s", "--model", "judge", "--base-url", judge_server.base_url]
    assert "dropped, no observation: 1" in invoke(*command, "--pass", "observation")
    assert json.loads((tmp_path / "s" / "sufficiency.json").read_text())["observation"]["mmvu"]["score"] == 0


def test_observations_that_state_the_answer_are_counted(tmp_path):
    replies = {
        "validation_0": response("The ball is red, so the answer is A.", "t", "A"),
        "validation_1": response("B", "t", "B"),
        "validation_2": response("A blue ball rolls over the grass.", "t", "C"),
    }
    run = make_run(tmp_path, replies)
    with text_server(lambda prompt: "<answer>A</answer>") as (url, _):
        invoke("sufficiency", run, "--out", tmp_path / "s", "--model", "t", "--base-url", url, "--pass", "question")
    result = json.loads((tmp_path / "s" / "sufficiency.json").read_text())
    assert result["names_answer"]["mmvu"] == pytest.approx(2 / 3)
    assert set(result) == {"question", "names_answer"}


def test_sufficiency_needs_a_model_and_known_passes(tmp_path):
    run = make_run(tmp_path, REPLIES)
    done = CliRunner().invoke(app, ["sufficiency", str(run), "--out", str(tmp_path / "s")])
    assert done.exit_code == 2
    assert "no model is named" in done.output
    done = CliRunner().invoke(app, ["sufficiency", str(run), "--out", str(tmp_path / "s"), "--pass", "all"])
    assert "pass 'all' is unknown: name some of observation, question, other" in done.output
