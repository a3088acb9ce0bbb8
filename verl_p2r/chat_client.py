# SPDX-License-Identifier: Apache-2.0
"""Servers that speak OpenAI's chat completions, and how they are called under load; the one room with a network.

Each call is tried again, elsewhere where there are several servers, until it has a reply, cannot get one, or its
deadline is over. The judge `openai` and the generation of data ask through it.
"""

import asyncio
import contextlib
import email.utils
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRIED_STATUS = {408, 409, 425, 429}
_MAX_CONCURRENCY = 1000  # what openai's HTTP client opens at most
_SHOWN = 300
_BACKOFF = wait_random_exponential(multiplier=0.5, max=15)
_REST_S, _MAX_REST_S = 0.5, 15.0
_REACHES, _REACH_S = 3, 4.0


@dataclass(frozen=True)
class Reply:
    """A chat completion.

    Args:
        text: what the model wrote.
        cut: whether it was cut off by `max_tokens`.
        retries: how often it was asked again.
        prompt_tokens, completion_tokens: as the server counts; 0 when it does not say.
    """

    text: str
    cut: bool = False
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Unanswered(Exception):
    """A call that has ended without a reply that can be used.

    Args:
        message: why, without the key.
        retries: how often it was asked again.
        status: the HTTP status that refused it for good; None when it was something that may pass.
        useless: there were replies, but none of use.
    """

    def __init__(self, message: str, retries: int = 0, status: int | None = None, useless: bool = False) -> None:
        super().__init__(message)
        self.retries, self.status, self.useless = retries, status, useless


class UselessReply(Exception):
    """A fine reply that does not say what was asked for: asked once more, since busy servers are not deterministic."""


class _Failure(Exception):
    """One attempt that gave no reply.

    Args:
        message: what happened.
        again: whether another attempt may do better.
        rest: how long, in seconds, nobody will ask that server; 0 when it is not the server's state.
        status: the HTTP status of a refusal.
        useless: there was one, but of no use.
    """

    def __init__(
        self,
        message: str,
        again: bool = True,
        rest: float = 0.0,
        status: int | None = None,
        useless: bool = False,
    ) -> None:
        super().__init__(message)
        self.again, self.rest, self.status, self.useless = again, rest, status, useless


class _Endpoint:
    """One base URL: its load, and until when it rests."""

    def __init__(self, url: str) -> None:
        self.url = url
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
    """What belongs to one event loop: the HTTP client, the endpoints, and the slots that bound their load."""

    def __init__(self, client: "ChatClient") -> None:
        # aiohttp's pool: at 256 connections httpx's own takes several times the CPU.
        self.http = openai.DefaultAioHttpClient(timeout=client._timeout, trust_env=client._use_proxy)
        key = client._secret() or "none"
        api = openai.AsyncOpenAI(base_url=client.base_urls[0], api_key=key, http_client=self.http)
        headers = {**api.default_headers, "Authorization": f"Bearer {key}"}
        self.headers = {name: value for name, value in headers.items() if isinstance(value, str)}  # others are unset
        self.endpoints = [_Endpoint(url) for url in client.base_urls]
        self.slots = asyncio.Semaphore(client.concurrency)
        self.patience_s = client._deadline_s

    async def endpoint(self, but: _Endpoint | None) -> _Endpoint:
        """The least busy endpoint that does not rest, rather another one than `but`; waits while all rest."""
        while True:
            now = time.monotonic()
            awake = [e for e in self.endpoints if e.rests_until <= now]
            if awake:
                return min(awake, key=lambda e: (e is but, e.in_flight, random.random()))
            rest = min(e.rests_until for e in self.endpoints) - now
            if rest > self.patience_s:
                raise _Failure(f"no server may be asked for {rest:.0f} s, longer than the deadline", again=False)
            await asyncio.sleep(rest * random.uniform(1.0, 1.25))  # not all at once


class ChatClient:
    """A model behind an OpenAI-compatible server, or several of them.

    Args:
        model: its name on the server.
        base_urls: one URL or several, such as `http://localhost:8000/v1`; a call goes to the least busy one.
        api_key_env: the environment variable that holds the key; a server without keys needs none.
        concurrency: calls in flight at once, in each event loop.
        connect_timeout_s, timeout_s: of one attempt, the whole of it, in seconds.
        deadline_s: of one call with all its retries, from when its first attempt may start, in seconds.
        body: fields of every request, such as `temperature`.
        use_proxy: go through the proxy that the environment names (HTTP_PROXY, NO_PROXY), if any.
        who: how messages call this model.

    Raises:
        ValueError: an option out of its range, or a URL that is none or holds a password.
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
        body: Mapping[str, Any] | None = None,
        use_proxy: bool = True,
        who: str = "the model",
    ) -> None:
        self.model, self._who = model, who
        self.base_urls = _checked_urls(base_urls, who)
        for name, value in (("connect_timeout_s", connect_timeout_s), ("timeout_s", timeout_s)):
            if not 0 < value <= deadline_s:
                raise ValueError(f"{who}'s {name} is {value}: give seconds, up to deadline_s={deadline_s}")
        if not 1 <= concurrency <= _MAX_CONCURRENCY:
            raise ValueError(f"{who}'s concurrency is {concurrency}: give 1 to {_MAX_CONCURRENCY}")
        self.concurrency, self._key_env = concurrency, api_key_env
        self._timeout, self._timeout_s = openai.Timeout(timeout_s, connect=connect_timeout_s), timeout_s
        self._deadline_s, self._use_proxy = deadline_s, use_proxy
        self.body = {"model": model, **(body or {})}
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._logged: set[int] = set()
        self._lost: set[str] = set()  # servers that are known to be gone

    async def complete(self, content: Any, use: Callable[[Reply], T], **more: Any) -> T:
        """Ask for one completion, when one of the slots is free.

        Args:
            content: of the user's message: a text, or a list of parts as OpenAI defines them.
            use: makes of a reply what is returned; raises `UselessReply` for one that must be asked for again.
            **more: further fields of this request.

        Raises:
            Unanswered: there is no reply, or none that can be used.
        """
        failures: list[str] = []
        session = self._session()
        # Written once, whatever the number of attempts: it may hold megabytes of frames.
        body = json.dumps({**self.body, **more, "messages": [{"role": "user", "content": content}]}).encode()
        async with session.slots:
            try:
                return await asyncio.wait_for(self._ask(session, body, use, failures), self._deadline_s)
            except (_Failure, asyncio.TimeoutError) as error:
                failure = error if isinstance(error, _Failure) else None
                why = str(failure) if failure else f"no reply of use within {self._deadline_s:g} s"
                if failures and failures[-1] != why:
                    why = f"{why}; at last: {failures[-1]}"
                status, useless = (failure.status, failure.useless) if failure else (None, False)
                raise Unanswered(self.redacted(why), max(len(failures) - 1, 0), status, useless) from None

    async def reach(self) -> None:
        """Make sure that a server is there, before anything is prepared for it; ten seconds of patience.

        Raises:
            Unanswered: none can be reached; what they answer does not matter.
        """
        session, errors = self._session(), []
        for attempt in range(_REACHES):
            for url in self.base_urls:
                try:
                    await session.http.get(f"{url}/models", headers=session.headers, timeout=_REACH_S)
                    return
                except Exception as error:  # whatever the HTTP client makes of it
                    errors.append(str(_lost(_Endpoint(url), error)))
            if attempt < _REACHES - 1:
                await asyncio.sleep(_REACH_S)
        raise Unanswered(self.redacted(f"{errors[-1]}: start the server, or correct its URL; nothing was asked"))

    def redacted(self, text: str) -> str:
        """A text without the key."""
        secret = self._secret()
        return text.replace(secret, "***") if len(secret) >= 8 else text  # a shorter one protects nothing

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.http.aclose()

    def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = _Session(self)
        return session

    def _secret(self) -> str:
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    async def _ask(self, session: _Session, body: bytes, use: Callable[[Reply], T], failures: list[str]) -> T:
        """Ask until there is a reply of use, or no hope of one; notes what went wrong on the way."""
        last: _Endpoint | None = None
        useless = 0

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
                    return use(await self._attempt(session, last, body, len(failures)))
                except UselessReply as error:
                    failures.append(self.redacted(f"{last.url}: {error}" if last else str(error)))
                    useless += 1
                    raise _Failure(failures[-1], again=useless < 2, useless=True) from None
                except _Failure as error:
                    failures.append(self.redacted(str(error)))
                    raise _Failure(failures[-1], error.again, error.rest, error.status) from None
        raise AssertionError("tenacity ends in a result or an exception")

    async def _attempt(self, session: _Session, endpoint: _Endpoint, body: bytes, retries: int) -> Reply:
        endpoint.in_flight += 1
        try:
            # openai's HTTP client with its headers; its `chat.completions.create` takes four times the CPU, most of
            # it for models of requests and replies of which three fields are read here.
            call = session.http.post(f"{endpoint.url}/chat/completions", content=body, headers=session.headers)
            response = await asyncio.wait_for(call, self._timeout_s)
        except asyncio.TimeoutError:
            raise _Failure(f"{endpoint.url} gave no reply within {self._timeout_s:g} s") from None
        except Exception as error:  # whatever the HTTP client makes of a server that hangs up or talks nonsense
            failure, first = _lost(endpoint, error), endpoint.failures == 1
            if failure.rest and first and endpoint.url not in self._lost:
                self._lost.add(endpoint.url)
                logger.warning("%s: %s; trying again", self._who, self.redacted(str(failure)))
            raise failure from None
        finally:
            endpoint.in_flight -= 1
        if response.status_code >= 400:
            raise self._refused(endpoint, response.status_code, response.headers.get("retry-after"), response.text)
        endpoint.failures = 0
        self._lost.discard(endpoint.url)
        return _read(endpoint.url, response.content, retries)

    def _refused(self, endpoint: _Endpoint, status: int, retry_after: str | None, text: str) -> _Failure:
        message = f"{endpoint.url} answered HTTP {status}: {text[:_SHOWN]}"
        if status in _RETRIED_STATUS or status >= 500:
            pause = _retry_after(retry_after)
            endpoint.rest(pause)
            return _Failure(message, rest=pause)
        key = f"the key in the environment variable {self._key_env}" if self._key_env else "a key, by api_key_env"
        remedy = {
            401: f"it does not take {key}" + ("" if self._secret() else ", which is not set in this process"),
            403: f"{key} may not use this model",
            404: f"it has no model {self.model!r}, or the URL lacks its path, most often /v1",
        }.get(status, "the request does not suit the server")
        message = f"{message}. Not asked again: {remedy}"
        if status not in self._logged:
            self._logged.add(status)
            logger.error("%s: %s", self._who, self.redacted(message))
        return _Failure(message, again=False, status=status)


def _lost(endpoint: _Endpoint, error: Exception) -> _Failure:
    """An attempt without a reply; a server that cannot be reached at all rests, longer each time."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None and not isinstance(chain[-1], aiohttp.ClientError):
        chain.append(chain[-1].__cause__)
    message = f"{endpoint.url}: {type(chain[-1]).__name__} {str(chain[-1])[:_SHOWN]}".rstrip()
    if not isinstance(chain[-1], aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return _Failure(message)
    return _Failure(message, rest=endpoint.unreachable())


def _read(url: str, body: bytes, retries: int) -> Reply:
    """Find the model's words in what the server sent."""
    reply: Any = None
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        content = choice["message"]["content"]
        if not isinstance(content, str):
            raise TypeError
    except (TypeError, LookupError, ValueError):
        shown = body[:_SHOWN].decode(errors="replace")
        raise _Failure(f"{url} replied with no chat completion: {shown!r}") from None
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = (n if isinstance(n := usage.get(key), int) else 0 for key in ("prompt_tokens", "completion_tokens"))
    return Reply(content, choice.get("finish_reason") == "length", retries, *tokens)


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


def _checked_urls(base_urls: str | Sequence[str], who: str) -> list[str]:
    urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
    if not urls:
        raise ValueError(f"{who}'s base_urls is empty: give at least one, such as http://localhost:8000/v1")
    for url in urls:
        parts = urlsplit(str(url))
        if parts.password or parts.username:
            raise ValueError(f"one of {who}'s base_urls holds a user name or password: keys belong in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{who}'s base_url {url!r} is no URL: write it like http://localhost:8000/v1")
    return [str(url).rstrip("/") for url in urls]
