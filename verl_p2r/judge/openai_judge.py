# SPDX-License-Identifier: Apache-2.0
"""The judge `openai`: a language model behind any server that speaks OpenAI's chat completions.

Every call ends in a verdict. Where none can be had (the server is down, it replies with junk, the key is wrong) its
value is None and its reason says why; nothing is raised, since an exception would lose the rollout.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_p2r.chat.client import ChatClient, Reply, Unanswered, UselessReply
from verl_p2r.chat.errors import SHOWN
from verl_p2r.chat.reply import THINKING_REMEDY
from verl_p2r.chat.thinking import spoken
from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, Verdict, build_judge_prompt, default_template, parse_verdict
from verl_p2r.judge.guards import MAX_OBSERVATION
from verl_p2r.judge.verdict_cache import VerdictCache

logger = logging.getLogger(__name__)

_KEPT = 2000  # characters of a judge's words


class OpenAIJudge:
    """Asks a model behind an OpenAI-compatible server, or several of them, whether an observation suffices.

    Args:
        model: its name on the server.
        base_urls: one URL or several, such as `http://localhost:8000/v1`; a call goes to the least busy one.
        api_key_env: the environment variable that holds the key; a server without keys needs none.
        concurrency: calls in flight at once, in each process and event loop (verl has `reward.num_workers` of them).
        connect_timeout_s, timeout_s: of one attempt, the whole of it, in seconds.
        deadline_s: of one verdict with all its retries, from when its first attempt may start, in seconds.
        temperature, max_tokens: of sampling; None leaves it to the server.
        extra_body: more fields of the request, for example
            `{"chat_template_kwargs": {"enable_thinking": False}}`.
        template_file: a prompt of your own, see `prompts/judge.txt`.
        max_observation_chars: a longer observation loses its middle.
        cache_size: verdicts kept in memory.
        cache_file: a file that keeps verdicts over runs, on a disk of the node; None: none.
        use_proxy: go through the proxy that the environment names (HTTP_PROXY, NO_PROXY), if any.

    Raises:
        ValueError: an option out of its range, a URL that cannot be used or holds a password, or a template that lacks
            a placeholder.
    """

    def __init__(
        self,
        model: str,
        base_urls: str | Sequence[str],
        *,
        api_key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 32,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 60.0,
        deadline_s: float = 180.0,
        temperature: float | None = 0.0,
        max_tokens: int | None = 512,
        extra_body: Mapping[str, Any] | None = None,
        template_file: str | None = None,
        max_observation_chars: int = MAX_OBSERVATION,
        cache_size: int = 100_000,
        cache_file: str | None = None,
        use_proxy: bool = True,
    ) -> None:
        if not model:
            raise ValueError("algorithm.p2r.judge.kwargs.model is not set: name the model as its server does")
        for name, number in (("cache_size", cache_size), ("max_observation_chars", max_observation_chars)):
            if number < 1:
                raise ValueError(f"the judge's {name} is {number}: give a whole number above 0")
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._client = ChatClient(
            model,
            base_urls,
            api_key_env=api_key_env,
            concurrency=concurrency,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            body={k: v for k, v in sampling.items() if v is not None} | dict(extra_body or {}),
            use_proxy=use_proxy,
            who="the judge",
        )
        self.model, self.base_urls = model, self._client.base_urls
        self._template = Path(template_file).expanduser().read_text("utf-8") if template_file else default_template()
        self._max_observation_chars = max_observation_chars
        build_judge_prompt(JudgeRequest("", "", ""), self._template)  # names a placeholder that it lacks
        fingerprint = [PROMPT_VERSION, self._template, max_observation_chars, self._client.body]
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode())
        self._cache = VerdictCache(cache_size, cache_file, model)

    def __repr__(self) -> str:
        return f"OpenAIJudge(model={self.model!r}, base_urls={self.base_urls!r})"

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation; the same question, answer and observation are paid for once."""
        return await self._cache.get(self._key(request), lambda: self.ask_anew(request))

    async def ask_anew(self, request: JudgeRequest) -> Verdict:
        """Judge one observation without a look into the cache."""
        try:
            prompt = build_judge_prompt(request, self._template, self._max_observation_chars)
            return await self._client.complete(prompt, self._verdict)
        except Unanswered as error:
            why, retries, status = str(error), error.retries, error.status
            if error.filtered:  # what the observation says was refused, and would be every time it is said
                return Verdict(False, why, retries=retries)
        except Exception as error:  # a fault of ours or of a library: not worth a rollout
            logger.exception("the judge %r failed on %s", self.model, request.row)
            why, retries = self._client.redacted(f"{type(error).__name__}: {error}"), 0
            status = None
        logger.warning("no verdict on %s: %s", request.row or "an observation", why)
        return Verdict(None, why, retries=retries, status=status)

    async def reach(self) -> None:
        """Make sure that a server is there.

        Raises:
            Unanswered: none can be reached.
        """
        await self._client.reach()

    async def aclose(self) -> None:
        """Close the connections of this event loop and write the cache."""
        await self._client.aclose()
        await asyncio.get_running_loop().run_in_executor(None, self._cache.close)

    def _verdict(self, reply: Reply) -> Verdict:
        value = parse_verdict(reply.text, reply.cut)
        said = spoken(reply.text)
        if value is None:
            why = reply.shortfall if said.finished else f" (it ends while thinking: {THINKING_REMEDY})"
            shown = self._client.redacted(reply.text)[-SHOWN:]
            raise UselessReply(f"no judgement in the reply{why}: {shown!r}")
        reason = self._client.redacted(said.text.strip() if said.thought else reply.text)[:_KEPT]
        return Verdict(value, reason, "judge", reply.retries, reply.prompt_tokens, reply.completion_tokens)

    def _key(self, request: JudgeRequest) -> bytes:
        digest = self._fingerprint.copy()
        for text in (request.question, request.solution, request.observation):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(data) + data)
        return digest.digest()
