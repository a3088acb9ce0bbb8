# SPDX-License-Identifier: Apache-2.0
"""Addresses of chat completions servers: completed as needed, or rejected before the first request."""

import base64
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

EXAMPLE = "http://localhost:8000/v1"

_CHAT = "/chat/completions"
_BETWEEN = re.compile(r"[\s,;，；、\"']+(?=https?:)", re.IGNORECASE)
_AROUND = " \t\r\n\f\v\xa0\u200b\u2060\ufeff,;，；、\"'`"
_OTHER_ENDPOINTS = re.compile(r"/(?:completions|responses|messages|embeddings|generate|v\d+/models)$", re.IGNORECASE)
_SECRET = re.compile(
    r"(?:.*[-_.])?(?:key|apikey|token|code|secret|sig|signature|password|passwd|auth|authorization)", re.IGNORECASE
)
_IMPOSSIBLE = re.compile(r'[\s<>"{}|\\^`\x00-\x20\x7f]')


@dataclass(frozen=True)
class Address:
    """The address of one server.

    Args:
        base: The URL before `/chat/completions`, with its query; messages use it.
        chat: The URL of the chat completions endpoint.
        models: The URL of the models endpoint.
        host: The host name in lower case.
        scheme: `http` or `https`.
        azure: Whether the server expects its key in Azure's header `api-key`.
    """

    base: str
    chat: str
    models: str
    host: str
    scheme: str
    azure: bool

    @property
    def bare(self) -> bool:
        """Whether the URL has no path, which most servers need."""
        return urlsplit(self.base).path in ("", "/")


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy.

    Args:
        url: The URL without user name and password.
        login: The headers that log in to the proxy.
    """

    url: str
    login: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """A server and the way to it.

    Args:
        address: The server's address.
        proxy: The proxy to use; None: a direct connection.
    """

    address: Address
    proxy: Proxy | None = None

    @property
    def name(self) -> str:
        """The server's name in messages, with the proxy, which may have answered instead of the server."""
        return f"{self.address.base} through the proxy {self.proxy.url}" if self.proxy else self.address.base

    @property
    def without_proxy(self) -> str:
        """The remedy that avoids the proxy."""
        return f"to go without this proxy, add {self.address.host} to NO_PROXY or set use_proxy=False"


def read_addresses(base_urls: Any, who: str) -> list[Address]:
    """Read the option `base_urls`.

    White space, quotes and commas around a URL are removed. A text may contain several URLs. A complete endpoint
    (`…/chat/completions`) is reduced to its base. A query is kept, because Azure needs it. Duplicates count once.

    Args:
        base_urls: One or several URLs.
        who: The model's name in messages.

    Raises:
        ValueError: There is no URL, or one is unusable; the message never quotes a password.

    >>> [a.chat for a in read_addresses("http://a/v1, https://b/v1/chat/completions?api-version=1", "the judge")]
    ['http://a/v1/chat/completions', 'https://b/v1/chat/completions?api-version=1']
    """
    given = [base_urls] if isinstance(base_urls, str) or not isinstance(base_urls, Iterable) else list(base_urls)
    texts: list[str] = []
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"{who}'s base_urls contains a {type(text).__name__}: give texts, such as {EXAMPLE}")
        text = text.strip(_AROUND)
        text = text[1:-1].strip(_AROUND) if text.startswith("[") and text.endswith("]") else text
        texts += [part.strip(_AROUND) for part in _BETWEEN.split(text)]
    addresses = {address.chat: address for address in (_address(text, who) for text in texts if text)}
    if not addresses:
        raise ValueError(f"{who}'s base_urls is empty: give at least one, such as {EXAMPLE}")
    return list(addresses.values())


def _address(text: str, who: str) -> Address:
    if "@" in re.split("[/?#]", text.partition("//")[2] or text, maxsplit=1)[0]:
        raise ValueError(f"one of {who}'s base_urls holds a user name or password: keys belong in api_key_env")
    try:
        parts = urlsplit(text)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as the HTTP client does
    except ValueError as error:
        raise ValueError(f"one of {who}'s base_urls cannot be read: {error}: write it like {EXAMPLE}") from None
    secret = next((name for name, _ in parse_qsl(parts.query, True) if _SECRET.fullmatch(name)), None)
    if secret:
        raise ValueError(f"one of {who}'s base_urls holds a key in its query ({secret}): keys belong in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path.startswith("//"):
        raise ValueError(f"{who}'s base_url {text!r} is not a URL: write it like {EXAMPLE}")
    if _IMPOSSIBLE.search(text) or any(unicodedata.category(sign) in ("Cc", "Cf", "Cs") for sign in text):
        raise ValueError(f"{who}'s base_url {text!r} holds a character that no URL has: write it like {EXAMPLE}")
    if parts.fragment or text.endswith("#"):
        raise ValueError(f"{who}'s base_url {text!r} has a fragment, which is never sent: remove it from the # on")
    path = re.sub(rf"{_CHAT}$", "", parts.path.rstrip("/"), flags=re.IGNORECASE).rstrip("/")
    if _OTHER_ENDPOINTS.search(path):
        raise ValueError(f"{who}'s base_url {text!r} is another endpoint: give only its base, such as {EXAMPLE}")
    if re.search("[,;]", parts.netloc + path):
        raise ValueError(f"{who}'s base_url {text!r} holds a comma or semicolon: give several URLs as a list")
    return Address(
        base=_with_path(parts, path),
        chat=_with_path(parts, path + _CHAT),
        models=_with_path(parts, path + "/models"),
        host=parts.hostname,
        scheme=parts.scheme,
        azure=any(name == "api-version" for name, _ in parse_qsl(parts.query, True)),
    )


def _with_path(parts: SplitResult, path: str) -> str:
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def route_to(address: Address, use_proxy: bool = True) -> Route:
    """Choose the way to a server: through the proxy that the environment names for it, if any.

    Args:
        address: The server's address.
        use_proxy: Whether to respect HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

    Raises:
        ValueError: The environment names a proxy that is not an HTTP proxy.
    """
    proxies = getproxies() if use_proxy else {}
    named = proxies.get(address.scheme) or proxies.get("all") or ""
    if not named or proxy_bypass(address.host):
        return Route(address)
    parts = urlsplit(named if "://" in named else f"http://{named}")
    login, _, where = parts.netloc.rpartition("@")
    basic = base64.b64encode(unquote(login).encode()).decode()
    proxy = Proxy(f"{parts.scheme}://{where}", {"Proxy-Authorization": f"Basic {basic}"} if login else {})
    route = Route(address, proxy)
    if parts.scheme not in ("http", "https") or not where:
        raise ValueError(
            f"the environment names the proxy {proxy.url}, which is not an HTTP proxy: {route.without_proxy}"
        )
    return route
