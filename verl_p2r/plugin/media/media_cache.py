# SPDX-License-Identifier: Apache-2.0
"""Decode a medium once for all rollouts of its prompt, which verl would decode once for each.

All rollouts of a prompt run in one process, so a cache there is enough: single-flight, because they start together, and
bounded in bytes, because a worker runs for days. Frames are uint8, a quarter of qwen-vl-utils' float32, which holds
whole numbers, too. A directory, if the user names one, keeps them over epochs.
"""

import asyncio
import base64
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from operator import methodcaller
from typing import Any

import cachetools
from PIL import Image, ImageOps
from torch.utils.weak import WeakIdKeyDictionary

from verl_p2r.cpus import available_cpus
from verl_p2r.media.decode import fetch_video, install_reader
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.images import fetch_image
from verl_p2r.settings import merge

install_reader()

GIB = 1024**3
THREADS = min(32, available_cpus())  # that work on media in one process


@dataclass(frozen=True)
class Source:
    """What a decoded medium was decoded from: enough to decode it again, in any process that sees the file.

    Args:
        kind: `video` or `image`.
        element: the message element as JSON: the source and the rules for sampling and size. A source in memory is
            written as a `data:` URL.
        patch_size: pixels; qwen-vl-utils makes sizes multiples of twice this.
    """

    kind: str
    element: str
    patch_size: int

    def decode(self, disk: FrameCache | None = None) -> Any:
        """Read the medium.

        Returns:
            For a video (frames, metadata), frames of shape (T, 3, H, W), uint8; for an image a PIL image.

        Raises:
            MediaError: it cannot be read.
        """
        element = json.loads(self.element)
        if self.kind == "image":
            return fetch_image(element, self.patch_size)
        key = None
        if disk:
            with suppress(OSError, TypeError, ValueError):  # no such file: the reader says so better
                key = disk.key(element, self.patch_size)
        if disk and key and (found := disk.get(key)) is not None:
            return found
        frames, metadata = fetch_video(element, self.patch_size)
        if disk and key:
            disk.put(key, frames, metadata)
        return frames, metadata


class MediaCache:
    """Decoded media of one process: each is decoded once, however many rollouts ask for it at the same time.

    Args:
        max_bytes: of decoded media kept; the least recently used go first. What rollouts hold stays with them.
        disk: keeps decoded videos over epochs and runs.
    """

    def __init__(self, max_bytes: int, disk: FrameCache | None = None):
        self._disk = disk
        self._done: cachetools.LRUCache[Source, Any] = cachetools.LRUCache(max(max_bytes, 1), getsizeof=_bytes_of)
        self._running: dict[tuple[Any, Source], asyncio.Task] = {}
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # Of its own: in asyncio's, decoding would wait behind tokenization.
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="decode")

    async def fetch(self, source: Source) -> Any:
        """Give a decoded medium, as `Source.decode` does; callers share one video and must not write to it."""
        medium = self._done.get(source)
        if medium is None:
            key = (asyncio.get_running_loop(), source)
            if key not in self._running:
                self._running[key] = asyncio.ensure_future(self._decode(source))
                self._running[key].add_done_callback(lambda _: self._running.pop(key))
            medium = await asyncio.shield(self._running[key])
        if source.kind == "image":
            medium = medium.copy()  # a tool may draw on it
        self._sources[_identity(medium)] = (source, _checksum(medium))
        return medium

    async def _decode(self, source: Source) -> Any:
        medium = await asyncio.get_running_loop().run_in_executor(self._threads, source.decode, self._disk)
        if _bytes_of(medium) <= self._done.maxsize:
            self._done[source] = medium
        return medium

    def sources_of(self, media: Sequence[Any]) -> tuple[Source, ...] | None:
        """What media (frames or images as `fetch` gave them) were decoded from; None when one is not from here, or is
        an image that was drawn on."""
        known = [self._sources.get(_identity(medium), (None, None)) for medium in media]
        if any(
            source is None or checksum != _checksum(medium)
            for (source, checksum), medium in zip(known, media, strict=True)
        ):
            return None
        return tuple(source for source, _ in known)


@dataclass(frozen=True)
class CacheSettings:
    """The node `data.p2r.media_cache`; what it leaves out has these values. Each agent loop worker has its own caches.

    Args:
        memory_gib: of decoded media kept in memory.
        pixels_gib: of processed pixels kept in Ray's object store.
        directory: keeps decoded videos over epochs and runs; nodes may share it. None: no such cache.
        disk_gib: of decoded videos kept in `directory`.
    """

    memory_gib: float = 2.0
    pixels_gib: float = 4.0
    directory: str | None = None
    disk_gib: float = 100.0

    @property
    def pixels_bytes(self) -> int:
        return int(self.pixels_gib * GIB)

    def open_disk(self) -> FrameCache | None:
        """The disk cache, if the user named a directory."""
        return FrameCache(self.directory, int(self.disk_gib * GIB)) if self.directory else None


def cache_settings(data_config: Mapping[str, Any] | None) -> CacheSettings:
    """Read them from the `data` node of the config; without one they have their defaults.

    Raises:
        ValueError: an unknown key or a value of the wrong type, by its dotted path.
    """
    node = ((data_config or {}).get("p2r") or {}).get("media_cache") or {}
    return merge(CacheSettings(), node, "data.p2r.media_cache")


@lru_cache(maxsize=1)
def _shared_cache(settings: CacheSettings) -> MediaCache:
    return MediaCache(int(settings.memory_gib * GIB), settings.open_disk())


def cache_of(data_config: Mapping[str, Any] | None) -> MediaCache:
    """This process's cache, as the `data` node of the config wants it."""
    return _shared_cache(cache_settings(data_config))


def sources_in(messages: Sequence[Mapping[str, Any]], patch_size: int) -> list[Source] | None:
    """The media of a conversation in their order; None when some are neither videos nor images."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    sources = []
    for part in parts:
        kind = part.get("type", "text")
        if kind == "text":
            continue
        if kind not in ("video", "image") or not isinstance(part.get(kind), str | bytes | list | tuple | Image.Image):
            return None
        element = {name: value for name, value in part.items() if name != "type"}
        element[kind] = _portable(element[kind])
        text = json.dumps(element, sort_keys=True, default=methodcaller("item"))  # of a numpy scalar
        sources.append(Source(kind, text, patch_size))
    return sources


def _portable(source: Any) -> Any:
    """A source as JSON holds it: what is in memory as a `data:` URL, pictures without loss."""
    if isinstance(source, list | tuple):
        return [_portable(frame) for frame in source]
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        upright = ImageOps.exif_transpose(source)
        (upright if upright.mode in ("L", "RGB", "RGBA") else upright.convert("RGB")).save(
            file, "PNG", compress_level=1
        )
        source = file.getvalue()
    if isinstance(source, bytes):
        return f"data:application/octet-stream;base64,{base64.b64encode(source).decode()}"
    return source


def _identity(medium: Any) -> Any:
    """The object that stands for a medium on its way to the processor: frames lose their metadata there."""
    return medium[0] if isinstance(medium, tuple) else medium


def _checksum(medium: Any) -> int | None:
    """Of an image; frames are not written to by anyone."""
    return zlib.crc32(medium.tobytes()) if isinstance(medium, Image.Image) else None


def _bytes_of(medium: Any) -> int:
    if isinstance(medium, tuple):
        return medium[0].nbytes
    width, height = medium.size
    return width * height * len(medium.getbands())
