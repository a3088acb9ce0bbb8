# SPDX-License-Identifier: Apache-2.0
"""Requests and judges for tests against `judge_server.py`."""

import asyncio

from verl_p2r.judge import JudgeRequest
from verl_p2r.judge.openai_judge import OpenAIJudge

KEY = "sk-0123456789abcdef"


def request(number: int = 1, colour: str | None = None) -> JudgeRequest:
    """Suffices when the number is odd."""
    colour = colour or ("red" if number % 2 else "blue")
    question = "Which colour is the ball?\nOptions:\nA. red\nB. green"
    return JudgeRequest(question, "<answer>A</answer>", f"Ball {number} is {colour}.", row=f"row {number}")


def run(judge: OpenAIJudge, *requests: JudgeRequest):
    """The verdicts of requests made at once, and the connections closed."""

    async def main():
        try:
            return await asyncio.gather(*map(judge.judge, requests))
        finally:
            await judge.aclose()

    return asyncio.run(main())


def make(*servers, **kwargs) -> OpenAIJudge:
    quick = {"connect_timeout_s": 1.0, "timeout_s": 5.0, "deadline_s": 20.0}
    return OpenAIJudge("judge", [server.base_url for server in servers], **{**quick, **kwargs})
