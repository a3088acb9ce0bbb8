# SPDX-License-Identifier: Apache-2.0
"""Rewards from a judge over HTTP that fails: a row is judged or marked, and no error becomes a reward."""

import asyncio
import re

import pytest
from omegaconf import OmegaConf
from test_reward_manager import data, tokenizer  # noqa: F401  a fixture
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

ROWS = 400
SHARES = {"500": 0.05, "drop": 0.05, "truncated": 0.05, "html": 0.05}


def response(i: int) -> str:
    colour = ("red", "blue")[i % 2]
    fate = "forbidden" if i % 40 == 11 else "vague" if i % 40 == 30 else "rolling"
    observation = "" if i % 40 == 7 else f"Ball {i} is {colour} and {fate}."
    return f"<observation>{observation}</observation>\n<think>Red is B.</think>\n<answer>B</answer>"


@pytest.mark.slow
def test_every_row_gets_verdict_or_is_marked_invalid(judge_server, tokenizer):  # noqa: F811
    judge_server.control(
        latency=0.02,
        yes_when=r"\bred\b",
        shares=SHARES,
        rules=[{"contains": "forbidden", "fault": "400"}, {"contains": "vague", "fault": "contradiction"}],
    )
    kwargs = {"model": "judge", "base_urls": judge_server.base_url}
    config = OmegaConf.create({"algorithm": {"p2r": {"judge": {"name": "openai", "kwargs": kwargs}}}})
    manager = get_reward_manager_cls("p2r")(config, tokenizer)
    texts = [response(i) for i in range(ROWS)]

    async def score_all():
        scored = await asyncio.gather(*(manager.run_single(data(tokenizer, text)) for text in texts))
        await manager.judge.aclose()
        return [one["reward_extra_info"] for one in scored]

    infos = asyncio.run(score_all())
    assert len({frozenset(info) for info in infos}) == 1  # the same keys on every path
    for text, info in zip(texts, infos, strict=True):
        if re.search("forbidden|vague", text):
            assert (info["perception_valid"], info["perception_accuracy"]) == (0, None)
            assert info["judge_error"]
        else:
            assert (info["perception_valid"], info["perception_accuracy"]) == (1, float("red" in text))
            assert info["judge_error"] == ""
    empty = [info for text, info in zip(texts, infos, strict=True) if "<observation></observation>" in text]
    assert len(empty) == ROWS // 40
    assert all(info["judge_seconds"] is None for info in empty)  # no judge was asked
    assert sum(info["judge_retries"] or 0 for info in infos) > 0
    assert len({call.prompt for call in judge_server.calls()}) == ROWS - len(empty)
