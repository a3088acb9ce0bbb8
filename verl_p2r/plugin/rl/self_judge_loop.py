# SPDX-License-Identifier: Apache-2.0
"""The agent loop `p2r_self_judge`: verl's single turn, and then the policy's second answer for the judge `self`.

The second request goes to the same servers as soon as the response has ended, so it is batched with the sampling of
other responses. Its prompt begins with the question, and all second requests of a question go to one server, whose
prefix cache serves them. The answer's text and cost travel to the reward manager in `extra_fields`; its tokens enter
neither the row nor the loss.
"""

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from verl.experimental.agent_loop import AgentLoopOutput, SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import register

from verl_p2r.data.rows import Row
from verl_p2r.judge import Judge, SecondAnswer
from verl_p2r.judge.guards import rule_verdict
from verl_p2r.judge.self_judge import AGENT_LOOP, FIELD, read_second_answer, second_answer_prefix
from verl_p2r.rewards import has_observation
from verl_p2r.segments import decode_response
from verl_p2r.settings import P2RSettings
from verl_p2r.template import parse_response

_GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": False}
_WITHOUT_SECOND_ANSWER = ("single_turn_agent", "tool_agent")  # verl's own loops


def check_loop(config: DictConfig, settings: P2RSettings, judge: Judge) -> None:
    """Refuse a judge that reads the second answer when the agent loop does not ask for one.

    Args:
        config: the whole config of verl's PPO trainer.
        settings: its node `algorithm.p2r`.
        judge: the judge that it names.

    Raises:
        ValueError: with the remedy.
    """
    loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
    if settings.perception.enabled and _reads_second_answer(judge) and loop in _WITHOUT_SECOND_ANSWER:
        raise ValueError(
            f"algorithm.p2r.judge.name is {settings.judge.name}, which reads the policy's second answer, but the agent "
            f"loop {loop!r} does not ask for one: choose p2r/judge=self, or set "
            f"actor_rollout_ref.rollout.agent.default_agent_loop={AGENT_LOOP}"
        )


def _reads_second_answer(judge: Judge) -> bool:
    """Whether a judge, or a member of a combined judge, reads the second answer."""
    members = getattr(judge, "members", None)
    inner = members.values() if isinstance(members, Mapping) else ()
    return getattr(judge, "needs_second_answer", False) or any(map(_reads_second_answer, inner))


@register(AGENT_LOOP)
class SelfJudgeLoop(SingleTurnAgentLoop):
    """Samples a response, then lets the policy answer from its observation alone, greedily."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.p2r = P2RSettings.from_mapping(self.config.algorithm.get("p2r") or {})

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Sample a response and ask for the second answer.

        Args:
            sampling_params: how the response is sampled.
            **kwargs: the row's columns.

        Returns:
            verl's output of the single turn, with the second answer in `extra_fields`; None there if none is needed.
        """
        output = await super().run(sampling_params, **kwargs)
        answer = await self._second_answer(output, kwargs)
        output.extra_fields[FIELD] = None if answer is None else dataclasses.asdict(answer)
        return output

    async def _second_answer(self, output: AgentLoopOutput, columns: Mapping[str, Any]) -> SecondAnswer | None:
        prefix = await asyncio.get_running_loop().run_in_executor(None, self._prefix, output.response_ids, columns)
        if prefix is None:
            return None
        start = time.monotonic()
        ids = await self.ct_build_initial_tokens(without_media(columns["raw_prompt"]))
        # The observation may have more tokens here than when it was sampled: leave room for at least one new token.
        room = self.prompt_length + self.response_length - 1 - len(ids)
        tokenizer: Any = self.tokenizer
        ids = ids + tokenizer.encode(prefix, add_special_tokens=False)[-room:]
        reply = await self.server_manager.generate(
            request_id=self._request_id(columns),
            prompt_ids=ids,
            sampling_params={**_GREEDY, "max_tokens": self.p2r.judge.second_answer.max_tokens},
        )
        aborted = reply.stop_reason in ("aborted", "abort")
        return SecondAnswer(
            text=None if aborted else read_second_answer(prefix, decode_response(reply.token_ids, self.tokenizer)),
            seconds=time.monotonic() - start,
            sampling_seconds=output.metrics.generate_sequences,
            prompt_tokens=len(ids),
            completion_tokens=len(reply.token_ids),
        )

    def _request_id(self, columns: Mapping[str, Any]) -> str:
        """An id by which verl's balancer sends all second requests of a question to one server."""
        request_id = f"second-{columns['uid']}"
        # With full determinism verl gives this id to vLLM, where it must be unique.
        unique = getattr(self.rollout_config, "full_determinism", False)
        return f"{request_id}-{columns['session_id']}" if unique else request_id

    def _prefix(self, response_ids: Sequence[int], columns: Mapping[str, Any]) -> str | None:
        """The beginning of the second answer; None if the verdict does not need one."""
        if not self.p2r.perception.enabled:
            return None
        response = decode_response(response_ids, self.tokenizer)
        parsed = parse_response(response)
        if not has_observation(parsed):
            return None
        request = Row.from_columns(columns).judge_request(parsed.observation or "")
        if rule_verdict(request, self.p2r.judge.guards) is not None:
            return None
        return second_answer_prefix(response, self.p2r.judge.second_answer.think)


def without_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave images, videos and audios out of a conversation.

    Args:
        messages: the conversation, in OpenAI's form.

    >>> video, text = {"type": "video", "video": "a.mp4"}, {"type": "text", "text": "?"}
    >>> without_media([{"role": "user", "content": [video, text]}])
    [{'role': 'user', 'content': [{'type': 'text', 'text': '?'}]}]
    """
    kept = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part for part in content if "text" in part]
        kept.append({**message, "content": content})
    return kept
