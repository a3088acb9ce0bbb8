# SPDX-License-Identifier: Apache-2.0
"""The judge `openai`: a language model behind any server with OpenAI's chat completions API.

Every call returns a verdict. If none can be reached (the server is down, its replies are unreadable, the key is wrong),
the verdict's value is None and its reason says why. Nothing is raised, because an exception would lose the rollout.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from verl_p2r.chat.client import ChatClient, Reply, Unanswered, UselessReply
from verl_p2r.chat.errors import SHOWN
from verl_p2r.chat.reply import THINKING_REMEDY
from verl_p2r.chat.thinking import spoken
from verl_p2r.judge.guards import MAX_OBSERVATION
from verl_p2r.judge.prompt import PROMPT_VERSION, build_judge_prompt, default_template
from verl_p2r.judge.protocol import JudgeRequest, Verdict
from verl_p2r.judge.reply import parse_verdict
from verl_p2r.judge.single_token import SingleToken, read_word
from verl_p2r.judge.verdict_cache import VerdictCache

logger = logging.getLogger(__name__)

_MAX_REASON = 2000  # characters of a judge's reply that a verdict keeps

_NO_THINKING = "turn thinking off, for example with extra_body={chat_template_kwargs: {enable_thinking: False}}"

ReplyForm = Literal["explained", "single_token"]


class OpenAIJudge:
    """Asks a model behind one or several OpenAI-compatible servers whether an observation suffices.

    Args:
        model: The model's name on the server.
        base_urls: One or several URLs, such as `http://localhost:8000/v1`; each call goes to the least busy server.
        api_key_env: The environment variable that holds the key; it may be unset if the server needs no key.
        concurrency: The most calls in flight, per process and event loop (verl has `reward.num_workers` processes).
        connect_timeout_s: Time limit of one attempt's connection, in seconds.
        timeout_s: Time limit of one whole attempt, in seconds.
        deadline_s: Time limit of one verdict including retries, in seconds, from when its first attempt may start.
        temperature: Sampling temperature; None leaves it to the server.
        reply: `explained` asks for a short explanation and then the verdict; `single_token` only for Yes or No, whose
            log-probabilities give P(Yes) [ours], see `single_token`. A reasoning model must not think then:
            `extra_body={"chat_template_kwargs": {"enable_thinking": False}}`.
        max_tokens: Tokens of a reply; None leaves it to the server. With `single_token` it is 1 unless it is None.
        extra_body: More fields of the request, for example `{"chat_template_kwargs": {"enable_thinking": False}}`.
        template_file: A prompt of your own; the default is `prompts/judge.txt`, or `prompts/judge_single_token.txt`.
        max_observation_chars: A longer observation loses its middle, in characters.
        cache_size: The most verdicts kept in memory.
        cache_file: A file on a local disk that keeps verdicts between runs; None: no file.
        use_proxy: Whether to use the proxy that the environment names (HTTP_PROXY, NO_PROXY), if any.

    Raises:
        ValueError: An option is out of range, a URL is unusable or holds a password, or the template lacks a
            placeholder.
    """

    prompt = "judge"
    """The package's prompt, a file of `prompts/`."""

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
        reply: ReplyForm = "explained",
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
        if reply not in get_args(ReplyForm):
            raise ValueError(f"the judge's reply is {reply!r}: use one of {', '.join(get_args(ReplyForm))}")
        for name, number in (("cache_size", cache_size), ("max_observation_chars", max_observation_chars)):
            if number < 1:
                raise ValueError(f"the judge's {name} is {number}: give a whole number above 0")
        self.gives_probabilities = reply == "single_token"
        tokens = 1 if self.gives_probabilities and max_tokens is not None else max_tokens
        sampling = {"temperature": temperature, "max_tokens": tokens}
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
        self._single = SingleToken(self._client) if self.gives_probabilities else None
        name = self.prompt + ("_single_token" if self._single else "")
        self._template = _read_template(template_file) if template_file else default_template(name)
        self._max_observation_chars = max_observation_chars
        build_judge_prompt(JudgeRequest("", "", ""), self._template)  # raises if the template lacks a placeholder
        fingerprint = [PROMPT_VERSION, self._template, max_observation_chars, self._client.body]
        fingerprint += [reply] if self._single else []
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode())
        self._cache = VerdictCache(cache_size, cache_file, model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, base_urls={self.base_urls!r})"

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation; repeated question, answer and observation get the cached verdict."""
        return await self._cache.get(self._key(request), lambda: self.ask_anew(request))

    async def ask_anew(self, request: JudgeRequest) -> Verdict:
        """Judge one observation without using the cache."""
        try:
            content, fields = await self._message(request)
            if self._single:
                return await self._single.ask(content, self._word, **fields)
            return await self._client.complete(content, self._verdict, **fields)
        except Unanswered as error:
            why, retries, status, useless = str(error), error.retries, error.status, error.useless
            if error.filtered:  # the filter would refuse this observation every time
                return Verdict(False, why, retries=retries)
        except Exception as error:  # a bug in this package or a library must not lose the rollout
            logger.exception("the judge %r failed on %s", self.model, request.row)
            why, retries, status = self._client.redacted(f"{type(error).__name__}: {error}"), 0, None
            useless = False
        logger.warning("no verdict on %s: %s", request.row or "an observation", why)
        return Verdict(None, why, retries=retries, status=status, useless=useless)

    async def _message(self, request: JudgeRequest) -> tuple[Any, dict[str, Any]]:
        """Return the user's message, and fields of the request that describe it."""
        return build_judge_prompt(request, self._template, self._max_observation_chars), {}

    async def reach(self) -> None:
        """Check that at least one server is reachable.

        Raises:
            Unanswered: No server is reachable.
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
        reason = self._client.redacted(said.text.strip() if said.thought else reply.text)[:_MAX_REASON]
        return Verdict(value, reason, "judge", reply.retries, reply.prompt_tokens, reply.completion_tokens)

    def _word(self, reply: Reply) -> Verdict:
        word = read_word(reply)
        if word is None:
            thinks = reply.thought or not spoken(reply.text).finished
            why = f" (it thinks: {_NO_THINKING})" if thinks else ""
            raise UselessReply(f"neither Yes nor No in the reply{why}: {self._client.redacted(reply.text)[-SHOWN:]!r}")
        reason = "Yes" if word.value else "No"
        if word.probability is not None:
            reason += f", P(Yes) = {word.probability:.3f}"
        cost = reply.retries, reply.prompt_tokens, reply.completion_tokens
        return Verdict(word.value, reason, "judge", *cost, probability=word.probability)

    def _key(self, request: JudgeRequest) -> bytes:
        digest = self._fingerprint.copy()
        for text in (request.question, request.solution, request.observation):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(data) + data)
        return digest.digest()


def _read_template(file: str) -> str:
    try:
        return Path(file).expanduser().read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the judge's template_file {file} is not UTF-8 ({error}): save it as UTF-8") from error
