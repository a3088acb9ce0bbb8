# SPDX-License-Identifier: Apache-2.0
"""How a call to a chat completions server fails, and what the messages about it say."""

import asyncio
import contextlib
import email.utils
import math
import time
from urllib.parse import urlsplit

import aiohttp

from verl_p2r.chat.addresses import Route
from verl_p2r.chat.reply import filtered

SHOWN = 300
"""Characters of a server's own words in a message."""

_RETRIED_STATUS = {408, 409, 425, 429}


class Unanswered(Exception):
    """A call that has ended without a reply that can be used.

    Args:
        message: why, without the key.
        retries: how often it was asked again.
        status: the HTTP status that refused it for good; None when it was something that may pass.
        useless: there were replies, but none of use.
        filtered: a content filter has refused it.
    """

    def __init__(
        self,
        message: str,
        retries: int = 0,
        status: int | None = None,
        useless: bool = False,
        filtered: bool = False,
    ) -> None:
        super().__init__(message)
        self.retries, self.status, self.useless, self.filtered = retries, status, useless, filtered


class UselessReply(Exception):
    """A fine reply that does not say what was asked for: asked once more, since busy servers are not deterministic."""


class Failure(Exception):
    """One attempt that gave no reply.

    Args:
        message: what happened.
        again: whether another attempt may do better.
        rest: how long, in seconds, the server asks to be left alone; 0 when it does not ask.
        unreachable: whether the server could not be reached at all.
        status, useless, filtered: see `Unanswered`.
    """

    def __init__(
        self,
        message: str,
        again: bool = True,
        *,
        rest: float = 0.0,
        unreachable: bool = False,
        status: int | None = None,
        useless: bool = False,
        filtered: bool = False,
    ) -> None:
        super().__init__(message)
        self.again, self.rest, self.unreachable = again, rest, unreachable
        self.status, self.useless, self.filtered = status, useless, filtered


def refusal(route: Route, status: int, location: str, retry_after: str, text: str, remedies: dict[int, str]) -> Failure:
    """What an HTTP status of 300 or more means.

    Args:
        route: who answered, by which way.
        status: the status.
        location, retry_after: its headers of these names, or empty texts.
        text: its body, ready to be shown.
        remedies: for some statuses, what is wrong and what helps.
    """
    message = f"{route.name} answered HTTP {status}: {text[:SHOWN]}"
    if filtered(status, text):
        return by_filter(route, status, text)
    if status in _RETRIED_STATUS or (status >= 500 and not (route.proxy and status == 511)):
        asked = f" (Retry-After: {retry_after[:40]})" if retry_after else ""
        return Failure(f"{message}{asked}", rest=read_retry_after(retry_after))
    if status < 400:
        target = f" to {_without_login(location)[:SHOWN]}" if location else ""
        remedy = f"it redirects{target}, which is not followed: set base_urls to the address that it has moved to"
    elif status == 407 and route.proxy:
        remedy = f"the proxy wants a login: put it into the proxy's URL in the environment, or {route.without_proxy}"
    else:
        remedy = remedies.get(status, "the request does not suit the server")
        if status == 403 and route.proxy:
            remedy += f"; or it is the proxy that refuses: {route.without_proxy}"
    return Failure(f"{message}. Not asked again: {remedy}", again=False, status=status)


def by_filter(route: Route, status: int, text: str) -> Failure:
    """A content filter has refused the request, or stopped the reply."""
    message = f"refused by the content filter of {route.name}: {text[:SHOWN]}"
    return Failure(message, again=False, status=status, filtered=True)


def lost(route: Route, error: Exception, timeout_s: float) -> Failure:
    """An attempt without a response: what the HTTP client raised, with a remedy where there is one."""
    said = f"{type(error).__name__} {str(error)[:SHOWN]}".rstrip()
    if isinstance(error, aiohttp.ClientHttpProxyError):  # it was asked to connect to the server, and refused
        message = f"{route.name}: the proxy refused with HTTP {error.status} {error.message[:SHOWN]}".rstrip()
        if error.status >= 500:
            return Failure(message)
        return Failure(f"{message}. Not asked again: {route.without_proxy}", again=False, status=error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError) and route.proxy:
        return Failure(f"{route.name}: cannot reach the proxy: {said}; {route.without_proxy}", unreachable=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        remedy = "if it is to be trusted, let SSL_CERT_FILE name the certificate of its authority"
        return Failure(f"{route.name}: {said}. Not asked again: {remedy}", again=False)
    unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    if isinstance(error, asyncio.TimeoutError) and not unreachable:
        return Failure(f"{route.name} gave no reply within {timeout_s:g} s")
    return Failure(f"{route.name}: {said}", unreachable=unreachable)


def read_retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 without a readable one.

    >>> read_retry_after("1.5"), read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), read_retry_after("soon")
    (1.5, 0.0, 0.0)
    """
    seconds = 0.0
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        seconds = email.utils.parsedate_to_datetime(header or "").timestamp() - time.time()
    with contextlib.suppress(ValueError):
        seconds = float(header or 0)
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _without_login(url: str) -> str:
    """A URL without its user name, password and query, which may hold secrets of the server's."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
