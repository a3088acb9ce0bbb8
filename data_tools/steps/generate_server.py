# SPDX-License-Identifier: Apache-2.0
"""Step 1 with a server: an OpenAI-compatible one generates the responses."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_tools.media.parts import media_parts
from data_tools.steps.chat_server import ChatServer
from data_tools.steps.generate_settings import GenerateSettings, prompt_of, text_of
from verl_p2r.cpus import available_cpus
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.media.message_parts import MediaParts

AHEAD = 1.5  # records in progress for each call that may be in flight: media are read while others wait for replies


class Generator:
    """Asks a server for responses.

    Args:
        settings: how to generate.
        root: folder that the records' paths are relative to.

    Raises:
        ValueError: a setting cannot be used.
    """

    def __init__(self, settings: GenerateSettings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.template = PromptTemplate.load(settings.prompt_template)
        self.fingerprint: Mapping[str, Any] = settings.fingerprint(self.template)
        self._server = ChatServer(settings, "generate")
        self.concurrency = int(settings.concurrency * AHEAD) + 1
        self._readers = ThreadPoolExecutor(settings.readers or available_cpus(), thread_name_prefix="media")

    async def ask(self, record: Record) -> dict[str, Any]:
        """Return the model's response to a record, unchanged."""
        await self._server.reach()
        loop = asyncio.get_running_loop()
        media: MediaParts = await loop.run_in_executor(self._readers, self._media, record)
        parts = [*media.parts, {"type": "text", "text": prompt_of(record, self.template)}]
        return {"output": await self._server.complete(parts, text_of, **media.body)}

    async def check(self) -> None:
        """Ask for one word."""
        await self._server.check(text_of)

    async def aclose(self) -> None:
        """Close the connections, and drop the media that are still to be read."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        await self._server.aclose()

    def _media(self, record: Record) -> MediaParts:
        own = self.settings
        return media_parts(record, self.root, own.media, video_as=own.video_as, patch_size=own.patch_size)
