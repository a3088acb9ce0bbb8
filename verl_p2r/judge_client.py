# SPDX-License-Identifier: Apache-2.0
"""The judge `openai`: any server that speaks OpenAI's chat completions, and how it is called under load.

Every call ends in a verdict. Where none can be had (the server is down, it replies with junk, the key is wrong) its
value is None and its reason says why; nothing is raised, since an exception would lose the rollout.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import json
import logging
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, Verdict, build_judge_prompt, default_template, parse_verdict
from verl_p2r.judge_guards import MAX_OBSERVATION
from verl_p2r.verdict_cache import VerdictCache

logger = logging.getLogger(__name__)

_RETRIED_STATUS = {408, 409, 425, 429}
_MAX_CONCURRENCY = 1000  # what openai's HTTP client opens at most
_SHOWN = 300
_BACKOFF = wait_random_exponential(multiplier=0.5, max=15)
_REST_S, _MAX_REST_S = 0.5, 15.0


class _Failure(Exception):
    """One attempt that gave no verdict.

    Args:
        message: what happened.
        again: whether another attempt may do better.
        rest: how long, in seconds, nobody will ask that server; 0 when it is not the server's state.
    """

    def __init__(self, message: str, again: bool = True, rest: float = 0.0) -> None:
        super().__init__(message)
        self.again, self.rest = again, rest


class _Endpoint:
    """One base URL: its client, its load, and until when it rests."""

    def __init__(self, url: str, client: openai.AsyncOpenAI) -> None:
        self.url, self.client = url, client
        self.in_flight = 0
        self.failures = 0
        self.rests_until = 0.0

    def rest(self, seconds: float) -> None:
        """Let nobody ask for so long."""
        self.rests_until = max(self.rests_until, time.monotonic() + seconds)

    def unreachable(self) -> float:
        """Rest, longer each time until it is reached again; calls that fail together count as one."""
        now = time.monotonic()
        if self.rests_until <= now:
            self.rest(min(_REST_S * 2**self.failures, _MAX_REST_S))
            self.failures += 1
        return self.rests_until - now


class _Session:
    """What belongs to one event loop: the HTTP client, the endpoints on it, and the slots that bound its load."""

    def __init__(self, judge: "OpenAIJudge") -> None:
        # aiohttp's pool: at 256 connections httpx's own takes several times the CPU.
        self.http = openai.DefaultAioHttpClient(timeout=judge._timeout, trust_env=judge._use_proxy)
        key = judge._secret() or "none"
        self.endpoints = [
            _Endpoint(url, openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=self.http))
            for url in judge.base_urls
        ]
        self.slots = asyncio.Semaphore(judge._concurrency)
        self.patience_s = judge._deadline_s

    async def endpoint(self, but: _Endpoint | None) -> _Endpoint:
        """The least busy endpoint that does not rest, rather another one than `but`; waits while all rest."""
        while True:
            now = time.monotonic()
            awake = [e for e in self.endpoints if e.rests_until <= now]
            if awake:
                return min(awake, key=lambda e: (e is but, e.in_flight, random.random()))
            rest = min(e.rests_until for e in self.endpoints) - now
            if rest > self.patience_s:
                raise _Failure(f"no server may be asked for {rest:.0f} s (Retry-After)", again=False)
            await asyncio.sleep(rest * random.uniform(1.0, 1.25))  # not all at once


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
        ValueError: an option out of its range, a URL that is none or holds a password, or a template that lacks a
            placeholder.
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
        self.model = model
        self.base_urls = _checked_urls(base_urls)
        for name, value in (("connect_timeout_s", connect_timeout_s), ("timeout_s", timeout_s)):
            if not 0 < value <= deadline_s:
                raise ValueError(f"the judge's {name} is {value}: give seconds, up to deadline_s={deadline_s}")
        for name, number in (("cache_size", cache_size), ("max_observation_chars", max_observation_chars)):
            if number < 1:
                raise ValueError(f"the judge's {name} is {number}: give a whole number above 0")
        if not 1 <= concurrency <= _MAX_CONCURRENCY:
            raise ValueError(f"the judge's concurrency is {concurrency}: give 1 to {_MAX_CONCURRENCY}")
        self._key_env, self._concurrency = api_key_env, concurrency
        self._timeout, self._timeout_s = openai.Timeout(timeout_s, connect=connect_timeout_s), timeout_s
        self._deadline_s, self._use_proxy = deadline_s, use_proxy
        self._template = Path(template_file).expanduser().read_text("utf-8") if template_file else default_template()
        self._max_observation_chars = max_observation_chars
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._body = {"model": model} | {k: v for k, v in sampling.items() if v is not None} | dict(extra_body or {})
        build_judge_prompt(JudgeRequest("", "", ""), self._template)  # names a placeholder that it lacks
        fingerprint = [PROMPT_VERSION, self._template, max_observation_chars, self._body]
        self._fingerprint = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode())
        self._cache = VerdictCache(cache_size, cache_file, model)
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        return f"OpenAIJudge(model={self.model!r}, base_urls={self.base_urls!r})"

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation; the same question, answer and observation are paid for once."""
        return await self._cache.get(self._key(request), lambda: self.ask_anew(request))

    async def ask_anew(self, request: JudgeRequest) -> Verdict:
        """Judge one observation without a look into the cache."""
        failures: list[str] = []
        try:
            prompt = build_judge_prompt(request, self._template, self._max_observation_chars)
            session = self._session()
            async with session.slots:
                verdict = await asyncio.wait_for(self._ask(session, prompt, failures), self._deadline_s)
        except (_Failure, asyncio.TimeoutError) as error:
            why = str(error) if isinstance(error, _Failure) else f"no verdict within {self._deadline_s:g} s"
            if failures and failures[-1] != why:
                why = f"{why}; at last: {failures[-1]}"
            return self._no_verdict(request, why, len(failures) - 1)
        except Exception as error:  # a fault of ours or of a library: not worth a rollout
            logger.exception("the judge %r failed on %s", self.model, request.row)
            return self._no_verdict(request, f"{type(error).__name__}: {error}", len(failures))
        return verdict

    async def aclose(self) -> None:
        """Close the connections of this event loop and write the cache."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.http.aclose()
        await asyncio.get_running_loop().run_in_executor(None, self._cache.close)

    def _key(self, request: JudgeRequest) -> bytes:
        digest = self._fingerprint.copy()
        for text in (request.question, request.solution, request.observation):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(data) + data)
        return digest.digest()

    def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = _Session(self)
        return session

    def _secret(self) -> str:
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    async def _ask(self, session: _Session, prompt: str, failures: list[str]) -> Verdict:
        """Ask until there is a verdict, or no hope of one; notes what went wrong on the way."""
        last: _Endpoint | None = None
        silent = 0

        def wait(state: RetryCallState) -> float:
            # While an endpoint rests, the choice of the next one does the waiting.
            failure = state.outcome.exception() if state.outcome else None
            return 0.0 if isinstance(failure, _Failure) and failure.rest else _BACKOFF(state)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _Failure) and error.again),
            wait=wait,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                try:
                    last = await session.endpoint(but=last)
                    return await self._attempt(last, prompt, len(failures))
                except _NoJudgement as error:
                    failures.append(self._redacted(str(error)))
                    silent += 1
                    raise _Failure(failures[-1], again=silent < 2) from None
                except _Failure as error:
                    failures.append(self._redacted(str(error)))
                    raise _Failure(failures[-1], error.again, error.rest) from None
        raise AssertionError("tenacity ends in a result or an exception")

    async def _attempt(self, endpoint: _Endpoint, prompt: str, retries: int) -> Verdict:
        body = {**self._body, "messages": [{"role": "user", "content": prompt}]}
        endpoint.in_flight += 1
        try:
            # Not `chat.completions.create`: building its models takes as long as all the rest of the call.
            call = endpoint.client.post(f"{endpoint.url}/chat/completions", cast_to=object, body=body)
            reply = await asyncio.wait_for(call, self._timeout_s)
        except asyncio.TimeoutError:
            raise _Failure(f"{endpoint.url} gave no reply within {self._timeout_s:g} s") from None
        except openai.APIStatusError as error:
            raise self._refused(endpoint, error) from None
        except Exception as error:  # whatever the HTTP client makes of a server that hangs up or talks nonsense
            raise _lost(endpoint, error) from None
        finally:
            endpoint.in_flight -= 1
        endpoint.failures = 0
        return _read(endpoint.url, reply, retries)

    def _refused(self, endpoint: _Endpoint, error: openai.APIStatusError) -> _Failure:
        status = error.status_code
        message = f"{endpoint.url} answered HTTP {status}: {str(error)[:_SHOWN]}"
        if status in _RETRIED_STATUS or status >= 500:
            pause = _retry_after(error.response.headers.get("retry-after"))
            endpoint.rest(pause)
            return _Failure(message, rest=pause)
        key = f"the key in the environment variable {self._key_env}" if self._key_env else "a key, by api_key_env"
        remedy = {
            401: f"it does not take {key}" + ("" if self._secret() else ", which is not set in this process"),
            403: f"{key} may not use this model",
            404: f"it has no model {self.model!r}, or the URL lacks its path, most often /v1",
        }.get(status, "the request does not suit the server")
        message = f"{message}. Not asked again: {remedy}"
        if str(status) not in self._logged:
            self._logged.add(str(status))
            logger.error("judge: %s", self._redacted(message))
        return _Failure(message, again=False)

    def _redacted(self, text: str) -> str:
        secret = self._secret()
        return text.replace(secret, "***") if len(secret) >= 8 else text  # a shorter one protects nothing

    def _no_verdict(self, request: JudgeRequest, why: str, retries: int) -> Verdict:
        why = self._redacted(why)
        logger.warning("no verdict on %s: %s", request.row or "an observation", why)
        return Verdict(None, why, retries=max(retries, 0))


class _NoJudgement(Exception):
    """A fine reply that holds no verdict: once more, since sampling on a busy server is not quite deterministic."""


def _lost(endpoint: _Endpoint, error: Exception) -> _Failure:
    """An attempt without a reply; a server that cannot be reached at all rests, longer each time."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None and not isinstance(chain[-1], aiohttp.ClientError):
        chain.append(chain[-1].__cause__)
    message = f"{endpoint.url}: {type(chain[-1]).__name__} {str(chain[-1])[:_SHOWN]}".rstrip()
    if not isinstance(chain[-1], aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return _Failure(message)
    rest = min(_REST_S * 2**endpoint.failures, _MAX_REST_S)
    if endpoint.rests_until <= time.monotonic():  # all that was in flight fails together: that is one failure
        endpoint.rest(rest)
    return _Failure(message, rest=rest)


def _read(url: str, reply: Any, retries: int) -> Verdict:
    """Find the judge's words in what the server sent, and the verdict in them."""
    try:
        choice = reply["choices"][0]
        content = choice["message"]["content"]
        if not isinstance(content, str):
            raise TypeError
    except (TypeError, LookupError):
        raise _Failure(f"{url} replied with no chat completion: {str(reply)[:_SHOWN]!r}") from None
    value = parse_verdict(content)
    if value is None:
        cut = " (cut off by max_tokens: raise it)" if choice.get("finish_reason") == "length" else ""
        raise _NoJudgement(f"{url}: no judgement in the reply{cut}: {content[-_SHOWN:]!r}")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens, completion_tokens = (
        n if isinstance(n := usage.get(key), int) else 0 for key in ("prompt_tokens", "completion_tokens")
    )
    return Verdict(value, content[:2000], "judge", retries, prompt_tokens, completion_tokens)


def _retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 without a readable one.

    >>> _retry_after("1.5"), _retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), _retry_after("soon")
    (1.5, 0.0, 0.0)
    """
    seconds = 0.0
    with contextlib.suppress(TypeError, ValueError):
        seconds = email.utils.parsedate_to_datetime(header or "").timestamp() - time.time()
    with contextlib.suppress(ValueError):
        seconds = float(header or 0)
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _checked_urls(base_urls: str | Sequence[str]) -> list[str]:
    urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
    if not urls:
        raise ValueError("the judge's base_urls is empty: give at least one, such as http://localhost:8000/v1")
    for url in urls:
        parts = urlsplit(str(url))
        if parts.password or parts.username:
            raise ValueError("one of the judge's base_urls holds a user name or password: keys belong in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the judge's base_url {url!r} is no URL: write it like http://localhost:8000/v1")
    return [str(url).rstrip("/") for url in urls]
