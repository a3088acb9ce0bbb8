# SPDX-License-Identifier: Apache-2.0
"""The media that a judge is shown: decoded and encoded once for all rollouts of a prompt, off the event loop.

Frames come from the same cache on disk as those of the policy, if the two share a directory and a patch size.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cachetools import LRUCache

from verl_p2r.cpus import available_cpus
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.message_parts import MediaParts, VideoAs, element_parts
from verl_p2r.media.rules import TRAINING

_THREADS = 8


class SentMedia:
    """Reads media as parts of a message; concurrent requests for one medium share one decode.

    Args:
        video_as: See `message_parts.element_parts`.
        patch_size: Patch size of the judge's vision tower, in pixels.
        kept: The most media kept in memory, encoded.
        cache: The disk cache of decoded frames, or None.
    """

    def __init__(self, video_as: VideoAs, patch_size: int, kept: int, cache: FrameCache | None) -> None:
        self._video_as, self._patch_size, self._cache = video_as, patch_size, cache
        self._made: LRUCache[str, Future[MediaParts]] = LRUCache(kept)
        self._threads = ThreadPoolExecutor(min(_THREADS, available_cpus()), thread_name_prefix="judge-media")

    def identity(self, media: Sequence[Mapping[str, Any]]) -> str:
        """Identify media by their files' paths, sizes and times, and by the rules of sampling.

        Raises:
            OSError: There is no such file.
            TypeError: A medium has no path and no bytes.
        """
        return json.dumps([FrameCache.key(TRAINING.fill(medium), self._patch_size) for medium in media])

    async def parts(self, media: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Read media in their order.

        Args:
            media: Canonical elements; a missing rule is that of training.

        Returns:
            The parts of the message, and fields of the request that describe a video. A request has room for one
            video's times, so the frames of several are sent as images, each with its time.

        Raises:
            MediaError: A medium is missing or cannot be read; decoders may raise other exceptions on damaged files.
        """
        video_as = self._video_as if sum("video" in medium for medium in media) == 1 else "images"
        made = await asyncio.gather(*(self._one(TRAINING.fill(medium), video_as) for medium in media))
        parts: list[dict[str, Any]] = []
        fields: dict[str, Any] = {}
        for one in made:
            parts += one.parts
            fields |= one.body
        return parts, fields

    async def _one(self, element: dict[str, Any], video_as: VideoAs) -> MediaParts:
        key = f"{video_as} {self._key(element)}"
        future = self._made.get(key)
        if future is None or (future.done() and future.exception() is not None):
            future = self._made[key] = self._threads.submit(self._read, element, video_as)
        return await asyncio.shield(asyncio.wrap_future(future))  # one caller's cancellation leaves the others alone

    def _key(self, element: Mapping[str, Any]) -> str:
        try:
            return FrameCache.key(element, self._patch_size)
        except (OSError, TypeError, ValueError):
            # It is a URL, or there is no such file, and reading it has the better message.
            return json.dumps(element, default=str)

    def _read(self, element: dict[str, Any], video_as: VideoAs) -> MediaParts:
        return element_parts(element, video_as=video_as, patch_size=self._patch_size, cache=self._cache)
