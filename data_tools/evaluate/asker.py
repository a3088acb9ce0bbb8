# SPDX-License-Identifier: Apache-2.0
"""Asks a chat completions server about records, for every command of an evaluation."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from data_tools.steps.chat_server import ChatServer
from data_tools.steps.generate_settings import GenerateSettings
from verl_p2r.chat.client import Reply
from verl_p2r.data.record import Record
from verl_p2r.evaluation.items import CUT

SHAPE = {"output": str, "finish_reason": str, "completion_tokens": int}
"""Fields and types of a stored reply."""


class Request(NamedTuple):
    """The content of one request.

    Args:
        content: content of the user's message: a text, or parts.
        body: more fields of the request.
    """

    content: Any
    body: Mapping[str, Any] = {}


class ChatAsker:
    """Asks a server about records; an `asking.Asker`.

    Args:
        settings: the server, and how it samples.
        fingerprint: every input except the record and its medium that determines a reply.
        request: makes the request about a record.
        who: name of the model's part in messages.
        ahead: records in progress for each call that may be in flight.

    Raises:
        ValueError: a setting of the client cannot be used.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        fingerprint: Mapping[str, Any],
        request: Callable[[Record], Awaitable[Request]],
        who: str,
        ahead: float = 1.0,
    ) -> None:
        self.fingerprint, self._request = fingerprint, request
        self.concurrency = int(settings.concurrency * ahead) + 1
        self._server = ChatServer(settings, who)

    async def ask(self, record: Record) -> dict[str, Any]:
        """Return the model's reply to a record unchanged, even an empty one, and whether it was cut off."""
        await self._server.reach()
        request = await self._request(record)
        return await self._server.complete(request.content, _fields, **request.body)

    async def check(self) -> None:
        """Ask for one word."""
        await self._server.check(_fields)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()


def _fields(reply: Reply) -> dict[str, Any]:
    return {
        "output": reply.text,
        "finish_reason": CUT if reply.cut else "stop",
        "completion_tokens": reply.completion_tokens,
    }
