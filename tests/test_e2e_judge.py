# SPDX-License-Identifier: Apache-2.0
"""Verdicts of a real vLLM server with a tiny model of random weights: the smallest judge there is."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from paths import ROOT
from vllm_server import vllm_server

from verl_p2r.judge import get_judge
from verl_p2r.judge.evaluation import evaluate, load_cases
from verl_p2r.judge.visual_cases import write_cases
from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_segments_left")]

LIMIT = 240  # seconds, for the server to come up
ENV = {**os.environ, **ROLLOUT_ENV, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory) -> Iterator[str]:
    """The URL of a vLLM server that knows a tiny model of random weights by the name `tiny`."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with vllm_server(tiny_model, "tiny", log, ENV, LIMIT, length=4096, rows=8) as url:
        yield url


def verdicts(name: str, server: str, cases, **options):
    judge = get_judge(name, model="tiny", base_urls=server, concurrency=4, timeout_s=120.0, **options)

    async def main():
        try:
            return [result.verdict for result in await evaluate(judge, cases, 4)]
        finally:
            await judge.aclose()

    return asyncio.run(main())


def test_even_random_weights_give_a_verdict_in_one_token(server):
    cases = load_cases()[::8]
    explained = verdicts("openai", server, cases[:3], max_tokens=32)
    assert [verdict.value for verdict in explained] == [None] * 3
    single = verdicts("openai", server, cases, reply="single_token")
    assert {verdict.value for verdict in single} <= {True, False}
    assert {verdict.completion_tokens for verdict in single} == {1}
    assert all(0 <= verdict.probability <= 1 for verdict in single)
    assert all((verdict.probability >= 0.5) is verdict.value for verdict in single)


@pytest.mark.parametrize("video_as", ["video", "images"])
def test_the_frames_reach_a_vision_language_model(server, tmp_path, video_as):
    cases = load_cases(write_cases(tmp_path))[:2]
    options = {"reply": "single_token", "video_as": video_as}
    shown = verdicts("visual", server, cases, **options)
    assert {verdict.value for verdict in shown} <= {True, False}
    text = verdicts("openai", server, cases, reply="single_token")
    assert all(a.prompt_tokens > b.prompt_tokens for a, b in zip(shown, text, strict=True))
