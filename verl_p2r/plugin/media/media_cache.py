# SPDX-License-Identifier: Apache-2.0
"""Decodes a medium once for all rollouts of its prompt; verl would decode it once for each.

All rollouts of a prompt run in one process, so a cache in memory is enough. Concurrent requests share one decode,
because the rollouts start together, and the cache is bounded in bytes, because a worker runs for days. Frames are
uint8, a quarter of qwen-vl-utils' float32, which holds whole numbers too. A directory can keep them over epochs.
"""

import asyncio
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from operator import methodcaller
from typing import Any

import cachetools
from PIL import Image, ImageOps
from torch.utils.weak import WeakIdKeyDictionary

from verl_p2r.cpus import available_cpus
from verl_p2r.media.decode import cached_video, install_reader
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.images import fetch_image
from verl_p2r.settings import merge
from verl_p2r.sizes import GIB

install_reader()

THREADS = min(32, available_cpus())  # threads that decode, or process, media in one process


@dataclass(frozen=True)
class Source:
    """The origin of a decoded medium: enough to decode it again in any process that sees the file.

    Args:
        kind: `video` or `image`.
        element: the message element as JSON: paths, and the rules for sampling and size. Encoded files in memory are
            null in it.
        patch_size: in pixels; qwen-vl-utils makes sizes multiples of twice this.
        files: the encoded files in memory, in the order of the nulls.
    """

    kind: str
    element: str
    patch_size: int
    files: tuple[bytes, ...] = ()

    def decode(self, disk: FrameCache | None = None) -> Any:
        """Decode the medium.

        Args:
            disk: cache of decoded videos; None without one.

        Returns:
            For a video (frames, metadata), frames of shape (T, 3, H, W), uint8; for an image a PIL image.

        Raises:
            MediaError: it cannot be read.
        """
        element = self._element()
        if self.kind == "image":
            return fetch_image(element, self.patch_size)
        return cached_video(element, self.patch_size, disk)

    def _element(self) -> dict[str, Any]:
        element: dict[str, Any] = json.loads(self.element)
        files, source = iter(self.files), element[self.kind]
        if isinstance(source, list):
            element[self.kind] = [next(files) if frame is None else frame for frame in source]
        elif source is None:
            element[self.kind] = next(files)
        return element


class MediaCache:
    """A process's cache of decoded media; concurrent requests for one medium share one decode.

    Args:
        max_bytes: limit for the decoded media kept; the least recently used are dropped first.
        disk: cache of decoded videos over epochs and runs; None without one.
    """

    def __init__(self, max_bytes: int, disk: FrameCache | None = None):
        self._disk = disk
        self._done: cachetools.LRUCache[Source, Any] = cachetools.LRUCache(max(max_bytes, 1), getsizeof=_bytes_of)
        self._running: dict[tuple[Any, Source], asyncio.Task] = {}
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # A separate pool, because decoding would wait for tokenization in asyncio's.
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="decode")

    async def fetch(self, source: Source) -> Any:
        """Return a decoded medium, as `Source.decode` does; callers share a video and must not write to it.

        Args:
            source: source of the medium.
        """
        medium: Any = self._done.get(source)
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
        """Find the sources of media.

        Args:
            media: frames or images that `fetch` returned.

        Returns:
            None when one is not from this cache, or is an image that was drawn on.
        """
        known = [self._sources.get(_identity(medium), (None, None)) for medium in media]
        if any(
            source is None or checksum != _checksum(medium)
            for (source, checksum), medium in zip(known, media, strict=True)
        ):
            return None
        return tuple(source for source, _ in known)


@dataclass(frozen=True)
class CacheSettings:
    """The node `data.p2r.media_cache`, with its defaults. Each agent loop worker has its own caches.

    Args:
        memory_gib: limit for decoded media kept in memory, in GiB.
        pixels_gib: limit for processed pixels kept in Ray's object store, in GiB.
        directory: keeps decoded videos over epochs and runs; nodes may share it. None disables this cache.
        disk_gib: limit for decoded videos kept in `directory`, in GiB.
    """

    memory_gib: float = 2.0
    pixels_gib: float = 4.0
    directory: str | None = None
    disk_gib: float = 100.0

    @property
    def pixels_bytes(self) -> int:
        """The limit for processed pixels, in bytes."""
        return int(self.pixels_gib * GIB)

    def open_disk(self) -> FrameCache | None:
        """Open the disk cache if there is a directory."""
        return FrameCache(self.directory, int(self.disk_gib * GIB)) if self.directory else None


def cache_settings(data_config: Mapping[str, Any] | None) -> CacheSettings:
    """Read the cache settings from the `data` node of the config.

    Args:
        data_config: the node; None for the defaults.

    Raises:
        ValueError: an unknown key or a value of the wrong type, by its dotted path.
    """
    node = ((data_config or {}).get("p2r") or {}).get("media_cache") or {}
    return merge(CacheSettings(), node, "data.p2r.media_cache")


@lru_cache(maxsize=1)
def _shared_cache(settings: CacheSettings) -> MediaCache:
    return MediaCache(int(settings.memory_gib * GIB), settings.open_disk())


def cache_of(data_config: Mapping[str, Any] | None) -> MediaCache:
    """Return this process's cache.

    Args:
        data_config: the `data` node of the config; None for the defaults.
    """
    return _shared_cache(cache_settings(data_config))


def sources_in(messages: Sequence[Mapping[str, Any]], patch_size: int) -> list[Source] | None:
    """List the media of a conversation in their order.

    Args:
        messages: messages of the conversation.
        patch_size: patch size of the model's processor, in pixels.

    Returns:
        None when a medium is neither a video nor an image.
    """
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    sources = []
    for part in parts:
        kind = part.get("type", "text")
        if kind == "text":
            continue
        if kind not in ("video", "image") or not isinstance(part.get(kind), str | bytes | list | tuple | Image.Image):
            return None
        sources.append(_source(kind, part, patch_size))
    return sources


def _source(kind: str, part: Mapping[str, Any], patch_size: int) -> Source:
    files: list[bytes] = []

    def named(medium: Any) -> Any:
        """Return a path as it is; move an encoded file in memory to `files`."""
        if isinstance(medium, list | tuple):
            return [named(frame) for frame in medium]
        if isinstance(medium, Image.Image):
            medium = _encoded(medium)
        if not isinstance(medium, bytes):
            return medium
        files.append(medium)
        return None

    element = {name: value for name, value in part.items() if name != "type"} | {kind: named(part[kind])}
    text = json.dumps(element, sort_keys=True, default=methodcaller("item"))  # turns a numpy scalar into a number
    return Source(kind, text, patch_size, tuple(files))


def _encoded(picture: Image.Image) -> bytes:
    """Encode a picture upright and without loss."""
    file = io.BytesIO()
    upright = ImageOps.exif_transpose(picture)
    (upright if upright.mode in ("L", "RGB", "RGBA") else upright.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _identity(medium: Any) -> Any:
    """The object by which the processor receives a medium; it receives frames without their metadata."""
    return medium[0] if isinstance(medium, tuple) else medium


def _checksum(medium: Any) -> int | None:
    """Checksum of an image; frames are never written to."""
    return zlib.crc32(medium.tobytes()) if isinstance(medium, Image.Image) else None


def _bytes_of(medium: Any) -> int:
    if isinstance(medium, tuple):
        return medium[0].nbytes
    width, height = medium.size
    return width * height * len(medium.getbands())
