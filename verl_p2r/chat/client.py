# SPDX-License-Identifier: Apache-2.0
"""Servers that speak OpenAI's chat completions, and how they are called under load.

Each call is tried again, elsewhere where there are several servers, until it has a reply, cannot get one, or its
deadline is over. The judge `openai` and the generation of data ask through it.
"""

import asyncio
import dataclasses
import json
import logging
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import certifi
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential
from yarl import URL

from verl_p2r import __version__
from verl_p2r.chat.addresses import Route, read_addresses, route_to
from verl_p2r.chat.errors import SHOWN, Failure, Unanswered, UselessReply, by_filter, lost, refusal
from verl_p2r.chat.redaction import redactor
from verl_p2r.chat.reply import Body, FilteredReply, Reply, UnreadableReply, filtered, read_reply

logger = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["ChatClient", "Reply", "Unanswered", "UselessReply"]

_MAX_CONCURRENCY = 1000  # connections that a process opens at most
_BACKOFF = wait_random_exponential(multiplier=0.5, max=15)
_REST_S, _MAX_REST_S = 0.5, 15.0
_REACHES, _REACH_S = 3, 4.0
_UNREADABLE = 4  # bodies that are not chat completions: a gateway may hiccup, but does not do so for long
_USELESS = 2
_ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}


class _Endpoint:
    """One server: its load, and until when it rests."""

    def __init__(self, route: Route) -> None:
        self.route, self.url = route, URL(route.address.chat)
        self.in_flight = 0
        self.failures = 0
        self.long_rests = 0
        self.rests_until = 0.0
        self.why_it_rests = ""

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

    def told_to_rest(self, seconds: float, deadline_s: float) -> None:
        """Rest as the server asks; when that is longer than a call can wait, ask again after a part of it [ours].

        Otherwise one reply that asks for an hour would silence a server that works again after a second.
        """
        if seconds > deadline_s / 2:
            self.long_rests += self.rests_until <= time.monotonic()  # calls that are refused together count as one
            seconds = deadline_s / 4 if self.long_rests <= 1 else deadline_s
        self.rest(seconds)


class _Session:
    """What belongs to one event loop: the HTTP client, the endpoints, and the slots that bound their load."""

    def __init__(self, client: "ChatClient") -> None:
        self.endpoints = list(map(_Endpoint, client._routes))
        self.slots = asyncio.Semaphore(client.concurrency)
        tls = ssl.create_default_context()
        tls.load_verify_locations(certifi.where())  # in addition to the system's, which a container may lack
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=aiohttp.ClientTimeout(client._timeout_s, connect=client._connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": f"verl-p2r/{__version__}",
            },
        )

    async def endpoint(self, but: _Endpoint | None, end: float) -> _Endpoint:
        """The least busy endpoint that does not rest, rather another one than `but`; waits while all rest.

        Args:
            but: who was asked last.
            end: when the call's deadline is over, on the monotonic clock, in seconds.
        """
        while True:
            now = time.monotonic()
            awake = [e for e in self.endpoints if e.rests_until <= now]
            if awake:
                return min(awake, key=lambda e: (e is but, e.in_flight, random.random()))
            first = min(self.endpoints, key=lambda e: e.rests_until)
            rest = first.rests_until - now
            if rest > 0.75 * (end - now):  # what is left after it should do for a reply
                why = f"no server may be asked for {rest:.1f} s, too long for the deadline; {first.why_it_rests}"
                raise Failure(why, again=False)
            await asyncio.sleep(rest * random.uniform(1.0, 1.25))  # not all at once


class ChatClient:
    """A model behind an OpenAI-compatible server, or several of them.

    Args:
        model: its name on the server.
        base_urls: one URL or several, such as `http://localhost:8000/v1`, see `chat_addresses.read_addresses`; a call
            goes to the least busy one.
        api_key_env: the environment variable that holds the key; a server without keys needs none.
        concurrency: calls in flight at once, in each event loop.
        connect_timeout_s, timeout_s: of one attempt, the whole of it, in seconds.
        deadline_s: of one call with all its retries, from when its first attempt may start, in seconds.
        body: fields of every request, such as `temperature`.
        use_proxy: go through the proxy that the environment names (HTTP_PROXY, NO_PROXY), if any.
        who: how messages call this model.

    Raises:
        ValueError: an option out of its range, a URL that cannot be used or holds a password, or a proxy that is not an
            HTTP proxy.
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
        addresses = read_addresses(base_urls, who)
        self.base_urls = [address.base for address in addresses]
        self._routes = [route_to(address, use_proxy) for address in addresses]
        for name, value in (("connect_timeout_s", connect_timeout_s), ("timeout_s", timeout_s)):
            if not 0 < value <= deadline_s:
                raise ValueError(f"{who}'s {name} is {value}: give seconds, up to deadline_s={deadline_s}")
        if not 1 <= concurrency <= _MAX_CONCURRENCY:
            raise ValueError(f"{who}'s concurrency is {concurrency}: give 1 to {_MAX_CONCURRENCY}")
        self.concurrency, self._key_env = concurrency, api_key_env
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._deadline_s = deadline_s
        self.body = {"model": model, **(body or {})}
        if self.body.get("stream"):
            raise ValueError(f"{who}'s extra_body sets stream: remove it, replies are read as a whole")
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._logged: set[int] = set()
        self._lost: set[str] = set()  # names of servers that are known to be gone

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
        # Written once, whatever the number of attempts: it may hold megabytes of frames.
        body = json.dumps({**self.body, **more, "messages": [{"role": "user", "content": content}]}).encode()
        failure = Failure(f"no reply of use within {self._deadline_s:g} s")
        try:
            session = self._session()
            async with session.slots:
                return await asyncio.wait_for(self._ask(session, body, use, failures), self._deadline_s)
        except asyncio.TimeoutError:
            pass
        except Failure as error:
            failure = error
        why = str(failure)
        if failures and failures[-1] not in why:
            why = f"{why}; at last: {failures[-1]}"
        retries = max(len(failures) - 1, 0)
        raise Unanswered(self.redacted(why), retries, failure.status, failure.useless, failure.filtered)

    async def reach(self) -> None:
        """Make sure that a server is there, before anything is prepared for it; ten seconds of patience.

        Raises:
            Unanswered: none can be reached; what they answer does not matter.
        """
        errors: list[str] = []
        for attempt in range(_REACHES):
            for route in self._routes:
                try:
                    return await self._reach(route)
                except Failure as error:
                    errors.append(str(error))
            if attempt < _REACHES - 1:
                await asyncio.sleep(_REACH_S)
        raise Unanswered(self.redacted(f"{errors[-1]}: start the server, or correct its URL; nothing was asked"))

    async def _reach(self, route: Route) -> None:
        try:
            timeout = aiohttp.ClientTimeout(_REACH_S)
            async with self._session().http.get(
                route.address.models, timeout=timeout, **self._options(route)
            ) as response:
                if response.status == 407 and route.proxy:
                    raise refusal(route, 407, "", "", "", {})
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise lost(route, error, _REACH_S) from None

    def redacted(self, text: str) -> str:
        """A text without the key."""
        return redactor(self._secret()).all(text)

    def shown(self, text: str) -> str:
        """The beginning of a text for a message; the key is taken out before the text is cut."""
        return self.redacted(text[: 16 * SHOWN])[:SHOWN]

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.http.close()

    def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = _Session(self)
        return session

    def _secret(self) -> str:
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    def _options(self, route: Route) -> dict[str, Any]:
        """What each request to a server carries, and by which way it goes."""
        key, address = self._secret(), route.address
        if not (key.isascii() and key.isprintable()):
            raise Failure(
                f"the key in {self._key_env} holds a character that no HTTP header takes: copy it again", False
            )
        headers = {}
        if key and address.azure and not key.startswith("eyJ"):  # a token of Entra ID is a bearer token there too
            headers["api-key"] = key
        elif key:
            headers["Authorization"] = f"Bearer {key}"
        if address.host == "openai.com" or address.host.endswith(".openai.com"):
            headers |= {
                name: os.environ[env].strip() for name, env in _ACCOUNT.items() if os.environ.get(env, "").strip()
            }
        options: dict[str, Any] = {"headers": headers, "allow_redirects": False}
        if route.proxy:
            options |= {"proxy": route.proxy.url, "proxy_headers": route.proxy.login}
            if address.scheme == "http":  # the proxy reads the request itself
                headers |= route.proxy.login
        return options

    async def _ask(self, session: _Session, body: bytes, use: Callable[[Reply], T], failures: list[str]) -> T:
        """Ask until there is a reply of use, or no hope of one; notes what went wrong on the way."""
        end = time.monotonic() + self._deadline_s
        last: _Endpoint | None = None
        useless = unreadable = 0

        def wait(state: RetryCallState) -> float:
            # While an endpoint rests, the choice of the next one does the waiting.
            failure = state.outcome.exception() if state.outcome else None
            return 0.0 if isinstance(failure, Failure) and (failure.rest or failure.unreachable) else _BACKOFF(state)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failure) and error.again),
            wait=wait,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                last = await session.endpoint(last, end)
                try:
                    return use(await self._attempt(session, last, body, len(failures)))
                except Failure as error:
                    failure = error
                except UnreadableReply as error:
                    unreadable += 1
                    failure = Failure(str(error), again=unreadable < _UNREADABLE)
                except UselessReply as error:
                    useless += 1
                    failure = Failure(f"{last.route.name}: {error}", again=useless < _USELESS, useless=True)
                failures.append(self.redacted(str(failure)))
                failure.args = (failures[-1],)
                raise failure
        raise AssertionError("tenacity ends in a result or an exception")

    async def _attempt(self, session: _Session, endpoint: _Endpoint, body: bytes, retries: int) -> Reply:
        route, options = endpoint.route, self._options(endpoint.route)
        endpoint.in_flight += 1
        try:
            async with session.http.post(endpoint.url, data=body, **options) as response:
                status, headers, data = response.status, response.headers, await _body_of(response)
        except UnreadableReply as error:
            raise UnreadableReply(f"{route.name} replied with no chat completion: {error}") from None
        except Exception as error:  # whatever the HTTP client makes of a server that hangs up or talks nonsense
            raise self._gone(endpoint, lost(route, error, self._timeout_s)) from None
        finally:
            endpoint.in_flight -= 1
        if status >= 300:
            raise self._refused(endpoint, status, headers, data.decode(errors="replace"))
        endpoint.failures = endpoint.long_rests = 0
        self._lost.discard(route.name)
        try:
            reply = read_reply(data, retries)
        except FilteredReply as error:
            raise by_filter(route, status, self.shown(str(error))) from None
        except UnreadableReply as error:
            hint = f" ({error})" if str(error) else ""
            shown = self.shown(data.decode(errors="replace"))
            raise UnreadableReply(f"{route.name} replied with no chat completion{hint}: {shown!r}") from None
        return dataclasses.replace(reply, text=redactor(self._secret()).whole(reply.text))

    def _gone(self, endpoint: _Endpoint, failure: Failure) -> Failure:
        """A server that cannot be reached rests, longer each time; the first time is worth a line in the log."""
        if failure.unreachable:
            endpoint.why_it_rests = str(failure)
            endpoint.unreachable()
            if endpoint.failures == 1 and endpoint.route.name not in self._lost:
                self._lost.add(endpoint.route.name)
                logger.warning("%s: %s; trying again", self._who, self.redacted(str(failure)))
        return failure

    def _refused(self, endpoint: _Endpoint, status: int, headers: Mapping[str, str], text: str) -> Failure:
        """What a refusal means; the first of its status is worth a line in the log."""
        key = f"the key in the environment variable {self._key_env}" if self._key_env else "a key, by api_key_env"
        bare = f": try {endpoint.route.address.base}/v1" if endpoint.route.address.bare else ""
        remedies = {
            401: f"it does not take {key}" + ("" if self._secret() else ", which is not set in this process"),
            402: f"the account behind {key} has no credit left",
            403: f"{key} may not use this model",
            404: f"it has no model {self.model!r}, or the URL lacks its path, most often /v1{bare}",
        }
        location, pause = headers.get("Location", ""), headers.get("Retry-After", "")
        if filtered(status, text):  # the whole text: its code may stand behind what is shown
            return by_filter(endpoint.route, status, self.shown(text))
        failure = refusal(endpoint.route, status, location, pause, self.shown(text), remedies)
        if failure.again:
            endpoint.why_it_rests = str(failure)
            endpoint.told_to_rest(failure.rest, self._deadline_s)
        elif status not in self._logged and not failure.filtered:
            self._logged.add(status)
            logger.error("%s: %s", self._who, self.redacted(str(failure)))
        return failure


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    """A response's body; of a refusal, nothing when it cannot be read."""
    try:
        body = Body(response.headers.get("Content-Encoding", ""))
        async for chunk in response.content.iter_any():
            body.feed(chunk)
        return body.whole()
    except UnreadableReply:
        if response.status < 300:
            raise
        return b""
