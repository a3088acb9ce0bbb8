# SPDX-License-Identifier: Apache-2.0
"""The chat completions server that a step asks; it must be reachable before the first question."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from data_tools.steps.asking import NobodyReplies
from data_tools.steps.generate_settings import GenerateSettings
from verl_p2r.chat.client import ChatClient, Reply, Unanswered

T = TypeVar("T")


class ChatServer:
    """A server, for all records of a step.

    Args:
        settings: the server, and how it samples.
        who: name of the model's part in messages.

    Raises:
        ValueError: a setting of the client cannot be used.
    """

    def __init__(self, settings: GenerateSettings, who: str) -> None:
        self._who = who
        self._client = ChatClient(
            settings.model,
            settings.base_urls,
            api_key_env=settings.api_key_env,
            concurrency=settings.concurrency,
            connect_timeout_s=min(5.0, settings.timeout_s),
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            body={"temperature": settings.temperature, "max_tokens": settings.max_tokens, **settings.extra_body},
            who=who,
        )
        self._reached: asyncio.Task[None] | None = None

    async def reach(self) -> None:
        """Check that a server is reachable, once for all records that wait for it.

        Raises:
            NobodyReplies: no server is reachable.
        """
        self._reached = self._reached or asyncio.create_task(self._reach())
        await asyncio.shield(self._reached)

    async def complete(self, content: Any, use: Callable[[Reply], T], **more: Any) -> T:
        """Ask for one completion; see `ChatClient.complete`."""
        return await self._client.complete(content, use, **more)

    async def check(self, use: Callable[[Reply], Any]) -> None:
        """Ask for one word, to see whether the server still answers."""
        await self._client.complete("Reply with the word yes.", use)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _reach(self) -> None:
        try:
            await self._client.reach()
        except Unanswered as error:
            raise NobodyReplies(f"{self._who}: {error}") from None
