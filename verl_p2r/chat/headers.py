# SPDX-License-Identifier: Apache-2.0
"""The credentials of a request: the key, OpenAI's account headers, and the proxy's login."""

import os
from dataclasses import dataclass
from typing import Any

from verl_p2r.chat.addresses import Address, Route
from verl_p2r.chat.errors import Failure

_ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}


@dataclass(frozen=True)
class ApiKey:
    """A key in an environment variable, read on every use so that it can change during a run.

    Args:
        variable: The variable's name; None: the server needs no key.
    """

    variable: str | None

    @property
    def value(self) -> str:
        """The key; empty if the variable is not set."""
        return os.environ.get(self.variable, "").strip() if self.variable else ""

    @property
    def name(self) -> str:
        """The key's name in messages."""
        return f"the API key in ${self.variable}" if self.variable else "a request without an API key (set api_key_env)"

    def options(self, route: Route) -> dict[str, Any]:
        """Return aiohttp's options for a request to a server.

        Raises:
            Failure: The key contains a character that is not allowed in an HTTP header.
        """
        key = self.value
        if not (key.isascii() and key.isprintable()):
            raise Failure(
                f"the API key in ${self.variable} contains a character that HTTP headers do not allow: copy it again",
                again=False,
            )
        headers = _account(route.address) | _authorization(route.address, key)
        options: dict[str, Any] = {"headers": headers, "allow_redirects": False}
        if route.proxy:
            options |= {"proxy": route.proxy.url, "proxy_headers": route.proxy.login}
            if route.address.scheme == "http":  # over plain HTTP the proxy reads the request's own headers
                headers |= route.proxy.login
        return options


def _authorization(address: Address, key: str) -> dict[str, str]:
    if not key:
        return {}
    if address.azure and not key.startswith("eyJ"):  # Azure accepts Entra ID tokens, which begin so, as bearer tokens
        return {"api-key": key}
    return {"Authorization": f"Bearer {key}"}


def _account(address: Address) -> dict[str, str]:
    """Return the account headers, which only OpenAI's own servers get."""
    if address.host != "openai.com" and not address.host.endswith(".openai.com"):
        return {}
    values = {name: os.environ.get(variable, "").strip() for name, variable in _ACCOUNT.items()}
    return {name: value for name, value in values.items() if value}
