# SPDX-License-Identifier: Apache-2.0
"""A client for servers with OpenAI's chat completions API that spreads load and retries failed calls.

A call is retried, on another server if there are several, until it has a usable reply, retrying is pointless, or its
deadline ends. The judge `openai` and data generation use it.
"""

import asyncio
import dataclasses
import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import certifi

from verl_p2r import __version__
from verl_p2r.chat.addresses import Route, read_addresses, route_to
from verl_p2r.chat.endpoints import Endpoint, next_endpoint
from verl_p2r.chat.errors import SHOWN, Failure, Unanswered, UselessReply, by_filter, lost, refusal
from verl_p2r.chat.headers import ApiKey
from verl_p2r.chat.redaction import redactor
from verl_p2r.chat.reply import Body, FilteredReply, Reply, UnreadableReply, filtered, read_reply

logger = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["ChatClient", "Reply", "Unanswered", "UselessReply"]

_MAX_CONCURRENCY = 1000  # connections of one process
_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 15.0
_REACHES, _REACH_S = 3, 4.0
_MAX_UNREADABLE = 4  # bodies that are not chat completions: a gateway's hiccups are short
_MAX_USELESS = 2


class _Session:
    """The state of one event loop: the HTTP client, the servers, and the slots that bound the load."""

    def __init__(self, routes: Sequence[Route], concurrency: int, timeout: aiohttp.ClientTimeout) -> None:
        self.endpoints = list(map(Endpoint, routes))
        self.slots = asyncio.Semaphore(concurrency)
        tls = ssl.create_default_context()
        tls.load_verify_locations(certifi.where())  # in addition to the system's, which a container may lack
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": f"verl-p2r/{__version__}",
            },
        )


class ChatClient:
    """One model behind one or several OpenAI-compatible servers.

    Args:
        model: The model's name on the server.
        base_urls: One or several URLs, such as `http://localhost:8000/v1` (see `addresses.read_addresses`); each call
            goes to the least busy server.
        api_key_env: The environment variable that holds the key; it may be unset if the server needs no key.
        concurrency: The most calls in flight, per event loop.
        connect_timeout_s: Time limit of one attempt's connection, in seconds.
        timeout_s: Time limit of one whole attempt, in seconds.
        deadline_s: Time limit of one call including retries, in seconds, from when its first attempt may start.
        body: Fields of every request, such as `temperature`.
        use_proxy: Whether to use the proxy that the environment names (HTTP_PROXY, NO_PROXY), if any.
        who: The model's name in messages.

    Raises:
        ValueError: An option is out of range, a URL is unusable or holds a password, or the proxy is not an HTTP proxy.
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
        addresses = read_addresses(base_urls, who)
        for name, value in (("connect_timeout_s", connect_timeout_s), ("timeout_s", timeout_s)):
            if not 0 < value <= deadline_s:
                raise ValueError(f"{who}'s {name} is {value}: give seconds, up to deadline_s={deadline_s}")
        if not 1 <= concurrency <= _MAX_CONCURRENCY:
            raise ValueError(f"{who}'s concurrency is {concurrency}: give 1 to {_MAX_CONCURRENCY}")
        self.model, self._who = model, who
        self.base_urls = [address.base for address in addresses]
        self.concurrency, self._key = concurrency, ApiKey(api_key_env)
        self.body = {"model": model, **(body or {})}
        if self.body.get("stream"):
            raise ValueError(f"{who}'s extra_body sets stream: remove it, because replies are read as a whole")
        self._routes = [route_to(address, use_proxy) for address in addresses]
        self._timeout = aiohttp.ClientTimeout(timeout_s, connect=connect_timeout_s)
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._logged: set[int] = set()  # statuses that are already in the log
        self._lost: set[str] = set()  # servers whose loss is already in the log

    async def complete(self, content: Any, use: Callable[[Reply], T], **more: Any) -> T:
        """Ask for one completion, as soon as a slot is free.

        Args:
            content: The user's message: a text, or a list of parts as OpenAI defines them.
            use: Converts a reply into the result; it raises `UselessReply` to ask again.
            **more: Further fields of this request.

        Raises:
            Unanswered: There is no usable reply.
        """
        # Encoded once for all attempts, because it may hold megabytes of frames.
        body = json.dumps({**self.body, **more, "messages": [{"role": "user", "content": content}]}).encode()
        failures: list[Failure] = []
        last = Failure(f"no usable reply within {self._deadline_s:g} s")
        try:
            session = self._session()
            async with session.slots:
                return await asyncio.wait_for(self._ask(session, body, use, failures), self._deadline_s)
        except asyncio.TimeoutError:
            pass
        except Failure as failure:
            last = failure
        why = str(last)
        if failures and str(failures[-1]) not in why:
            why = f"{why}; last failure: {failures[-1]}"
        retries = max(len(failures) - 1, 0)
        raise Unanswered(self.redacted(why), retries, last.status, last.useless, last.filtered)

    async def reach(self) -> None:
        """Check that at least one server is reachable before any work begins; takes 20 seconds at most.

        Raises:
            Unanswered: No server is reachable. Any HTTP response counts as reachable.
        """
        for attempt in range(_REACHES):
            failures = await asyncio.gather(*(self._reach(route) for route in self._routes))
            if None in failures:
                return
            errors = [failure for failure in failures if failure is not None]
            if not any(error.again for error in errors):  # a wrong certificate, or a proxy's refusal
                raise Unanswered(self.redacted(str(errors[-1])))
            if attempt < _REACHES - 1:
                await asyncio.sleep(_REACH_S)
        again = next(error for error in reversed(errors) if error.again)
        raise Unanswered(self.redacted(f"{again}: start the server, or correct its URL; nothing was asked"))

    async def _reach(self, route: Route) -> Failure | None:
        """Return why a server cannot be reached; None if it can."""
        http, timeout = self._session().http, aiohttp.ClientTimeout(_REACH_S)
        try:
            async with http.get(route.address.models, timeout=timeout, **self._key.options(route)) as response:
                if response.status == 407 and route.proxy:
                    return refusal(route, 407, "", "", "", {})
                return None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            return lost(route, error, _REACH_S)

    def redacted(self, text: str) -> str:
        """Return a text without the key."""
        return redactor(self._key.value).all(text)

    def shown(self, text: str) -> str:
        """Return the beginning of a text for a message; the key is removed before the text is cut."""
        return self.redacted(text[: 16 * SHOWN])[:SHOWN]

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.http.close()

    def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = _Session(self._routes, self.concurrency, self._timeout)
        return self._sessions[loop]

    async def _ask(self, session: _Session, body: bytes, use: Callable[[Reply], T], failures: list[Failure]) -> T:
        """Try until a reply is usable or another attempt is pointless; append what failed to `failures`."""
        end = time.monotonic() + self._deadline_s
        endpoint: Endpoint | None = None
        while True:
            endpoint = await next_endpoint(session.endpoints, endpoint, end)
            outcome = await self._attempt(session, endpoint, body, use, len(failures))
            if not isinstance(outcome, Failure):
                return outcome
            failures.append(outcome)
            if not _may_retry(failures):
                raise outcome
            await asyncio.sleep(_pause_s(failures))

    async def _attempt(
        self, session: _Session, endpoint: Endpoint, body: bytes, use: Callable[[Reply], T], retries: int
    ) -> T | Failure:
        try:
            return use(await self._post(session, endpoint, body, retries))
        except UselessReply as error:
            return Failure(f"{endpoint.route.name}: {error}", useless=True)
        except Failure as failure:
            return failure

    async def _post(self, session: _Session, endpoint: Endpoint, body: bytes, retries: int) -> Reply:
        """Send one request and read its response, noting what it says about the server."""
        route, options = endpoint.route, self._key.options(endpoint.route)
        endpoint.in_flight += 1
        try:
            async with session.http.post(endpoint.url, data=body, **options) as response:
                status, headers, data = response.status, response.headers, await _body_of(response)
        except UnreadableReply as error:
            raise _unreadable(route, f": {error}") from None
        except Exception as error:  # the HTTP client may raise anything if a server disconnects or breaks the protocol
            raise self._gone(endpoint, lost(route, error, self._timeout_s)) from None
        finally:
            endpoint.in_flight -= 1
        if status >= 300:
            raise self._refused(endpoint, status, headers, data.decode(errors="replace"))
        endpoint.succeeded()
        self._lost.discard(route.name)
        return self._read(route, status, data, retries)

    def _read(self, route: Route, status: int, data: bytes, retries: int) -> Reply:
        try:
            reply = read_reply(data, retries)
        except FilteredReply as error:
            raise by_filter(route, status, self.shown(str(error))) from None
        except UnreadableReply as error:
            hint = f" ({error})" if str(error) else ""
            raise _unreadable(route, f"{hint}: {self.shown(data.decode(errors='replace'))!r}") from None
        return dataclasses.replace(reply, text=redactor(self._key.value).whole(reply.text))

    def _gone(self, endpoint: Endpoint, failure: Failure) -> Failure:
        """Let an unreachable server rest; log only its first loss."""
        if failure.unreachable:
            endpoint.why_it_rests = str(failure)
            endpoint.unreachable()
            if endpoint.failures == 1 and endpoint.route.name not in self._lost:
                self._lost.add(endpoint.route.name)
                logger.warning("%s: %s; trying again", self._who, self.redacted(str(failure)))
        return failure

    def _refused(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], text: str) -> Failure:
        """Interpret a refusal; log only the first of each status."""
        if filtered(status, text):  # look at the whole text, because the code may follow the part that is shown
            return by_filter(endpoint.route, status, self.shown(text))
        location, pause = headers.get("Location", ""), headers.get("Retry-After", "")
        remedies = self._remedies(endpoint.route)
        failure = refusal(endpoint.route, status, location, pause, self.shown(text), remedies)
        if failure.again:
            endpoint.why_it_rests = str(failure)
            endpoint.asked_to_wait(failure.rest, self._deadline_s)
        elif status not in self._logged and not failure.filtered:
            self._logged.add(status)
            logger.error("%s: %s", self._who, self.redacted(str(failure)))
        return failure

    def _remedies(self, route: Route) -> dict[int, str]:
        key = self._key
        unset = "" if key.value or not key.variable else ", which is not set in this process"
        bare = f": try {route.address.base}/v1" if route.address.bare else ""
        return {
            401: f"the server rejected {key.name}{unset}",
            402: f"the account of {key.name} has no credit left",
            403: f"{key.name} may not use this model",
            404: f"the server has no model {self.model!r}, or the URL lacks its path, usually /v1{bare}",
        }


def _may_retry(failures: Sequence[Failure]) -> bool:
    return (
        failures[-1].again
        and sum(failure.useless for failure in failures) < _MAX_USELESS
        and sum(failure.unreadable for failure in failures) < _MAX_UNREADABLE
    )


def _pause_s(failures: Sequence[Failure]) -> float:
    """Return a random exponential backoff, in seconds; none while the server itself rests."""
    if failures[-1].rest or failures[-1].unreachable:
        return 0.0
    return random.uniform(0.0, min(_BACKOFF_S * 2 ** (len(failures) - 1), _MAX_BACKOFF_S))


def _unreadable(route: Route, why: str) -> Failure:
    return Failure(f"{route.name} did not reply with a chat completion{why}", unreadable=True)


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    """Read a response's body; an unreadable body of a refusal counts as empty."""
    try:
        body = Body(response.headers.get("Content-Encoding", ""))
        async for chunk in response.content.iter_any():
            body.feed(chunk)
        return body.whole()
    except UnreadableReply:
        if response.status < 300:
            raise
        return b""
