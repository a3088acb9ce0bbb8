# SPDX-License-Identifier: Apache-2.0
"""The perception judge: does the observation suffice to deduce the answer? R_acc,P of VideoP2R (arXiv 2511.11113).

A judge is any class with an async `judge(request) -> Verdict`, chosen by its registered name or by `module:Class`.
`facts` needs no model because the row lists what the observation must state; `openai` asks a model over HTTP; `verl`
asks a model that verl serves alongside training; `self` reads the policy's own second answer; `visual` shows the media
to a model; `all`, `any` and `weighted` combine several judges. Without verl:

    judge = get_judge("openai", model="Qwen/Qwen3-8B", base_urls=["http://localhost:8000/v1"])
    verdict = await ask(judge, JudgeRequest(question, solution, observation), guards)

Importing this package loads no network client.
"""

from verl_p2r.judge.facts import Fact
from verl_p2r.judge.facts_judge import FactsJudge
from verl_p2r.judge.guards import ask
from verl_p2r.judge.health import KNOWN_REQUESTS, check_judge
from verl_p2r.judge.prompt import PROMPT_VERSION, build_judge_prompt, default_template
from verl_p2r.judge.protocol import Judge, JudgeRequest, SecondAnswer, Verdict
from verl_p2r.judge.registry import get_judge, register_judge
from verl_p2r.judge.reply import parse_verdict

__all__ = [
    "KNOWN_REQUESTS",
    "PROMPT_VERSION",
    "Fact",
    "FactsJudge",
    "Judge",
    "JudgeRequest",
    "SecondAnswer",
    "Verdict",
    "ask",
    "build_judge_prompt",
    "check_judge",
    "default_template",
    "get_judge",
    "parse_verdict",
    "register_judge",
]
