# SPDX-License-Identifier: Apache-2.0
"""How a call to a chat completions server can fail, and the messages about it."""

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
"""The most characters of a server's own words in a message."""

_RETRIED_STATUS = {408, 409, 425, 429}


class Unanswered(Exception):
    """A call that ended without a usable reply.

    Args:
        message: The reason, without the key.
        retries: How often the request was repeated.
        status: The HTTP status of a final refusal; None if the failure may be temporary.
        useless: Whether there were replies, but none was usable.
        filtered: Whether a content filter refused the request.
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
    """A complete reply without the requested content; it is requested again, because sampling may differ."""


class Failure(Exception):
    """One attempt without a usable reply.

    Args:
        message: What happened.
        again: Whether another attempt may succeed.
        rest: How long the server asks to be left alone, in seconds; 0 if it does not ask.
        unreachable: Whether the server could not be reached at all.
        unreadable: Whether the body was not a chat completion.
        status: See `Unanswered`.
        useless: See `Unanswered`.
        filtered: See `Unanswered`.
    """

    def __init__(
        self,
        message: str,
        again: bool = True,
        *,
        rest: float = 0.0,
        unreachable: bool = False,
        unreadable: bool = False,
        status: int | None = None,
        useless: bool = False,
        filtered: bool = False,
    ) -> None:
        super().__init__(message)
        self.again, self.rest, self.unreachable, self.unreadable = again, rest, unreachable, unreadable
        self.status, self.useless, self.filtered = status, useless, filtered


def refusal(route: Route, status: int, location: str, retry_after: str, text: str, remedies: dict[int, str]) -> Failure:
    """Interpret an HTTP status of 300 or more.

    Args:
        route: The server that answered, and the way to it.
        status: The HTTP status.
        location: The header Location, or an empty text.
        retry_after: The header Retry-After, or an empty text.
        text: The body, ready to be shown.
        remedies: Status → what is wrong and what helps.
    """
    message = f"{route.name} answered HTTP {status}: {text[:SHOWN]}"
    if filtered(status, text):
        return by_filter(route, status, text)
    if status in _RETRIED_STATUS or (status >= 500 and not (route.proxy and status == 511)):
        asked = f" (Retry-After: {retry_after[:40]})" if retry_after else ""
        return Failure(f"{message}{asked}", rest=read_retry_after(retry_after))
    if status < 400:
        target = f" to {_without_login(location)[:SHOWN]}" if location else ""
        remedy = f"it redirects{target}, which is not followed: set base_urls to the new address"
    elif status == 407 and route.proxy:
        remedy = f"the proxy requires a login: add it to the proxy's URL in the environment, or {route.without_proxy}"
    else:
        remedy = remedies.get(status, "the server does not accept this request")
        if status == 403 and route.proxy:
            remedy += f"; or the proxy refuses: {route.without_proxy}"
    return Failure(f"{message}. Not retried: {remedy}", again=False, status=status)


def by_filter(route: Route, status: int, text: str) -> Failure:
    """Make the failure of a request or reply that a content filter refused."""
    message = f"refused by the content filter of {route.name}: {text[:SHOWN]}"
    return Failure(message, again=False, status=status, filtered=True)


def lost(route: Route, error: Exception, timeout_s: float) -> Failure:
    """Interpret what the HTTP client raised instead of returning a response.

    Args:
        route: The server and the way to it.
        error: What the client raised.
        timeout_s: The attempt's time limit, in seconds.
    """
    said = f"{type(error).__name__} {str(error)[:SHOWN]}".rstrip()
    if isinstance(error, aiohttp.ClientHttpProxyError):  # the proxy refused to connect to the server
        message = f"{route.name}: the proxy refused with HTTP {error.status} {error.message[:SHOWN]}".rstrip()
        if error.status >= 500:
            return Failure(message)
        return Failure(f"{message}. Not retried: {route.without_proxy}", again=False, status=error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError) and route.proxy:
        return Failure(f"{route.name}: cannot reach the proxy: {said}; {route.without_proxy}", unreachable=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        remedy = "to trust it, set SSL_CERT_FILE to the certificate of its authority"
        return Failure(f"{route.name}: {said}. Not retried: {remedy}", again=False)
    unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    if isinstance(error, asyncio.TimeoutError) and not unreachable:
        return Failure(f"{route.name} did not reply within {timeout_s:g} s")
    return Failure(f"{route.name}: {said}", unreachable=unreachable)


def read_retry_after(header: str | None) -> float:
    """Read the wait of a Retry-After header, in seconds, from a number or a date; 0 if it is missing or unreadable.

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
    """Return a URL without its login and query, which may hold the server's secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable address"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
