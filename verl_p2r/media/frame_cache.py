# SPDX-License-Identifier: Apache-2.0
"""A disk cache of decoded and resized frames, for later epochs and runs.

An entry is one file that is written under another name and renamed, so readers in any process of any node see all of
it or nothing. There is no lock: a file that disappears while it is read counts as missing, and processes that evict at
the same time choose the same oldest files.

Frames are stored without loss: red and blue as differences from green, every value as a difference from its left and
upper neighbours, then zstd. On real clips 256 frames of 100,352 pixels take 24 to 39 MB instead of 77 MB, and reading
them takes a twentieth of the CPU time of decoding and resizing. FFV1, lossless H.264, Ut Video, PNG and WebP through
PyAV and Pillow save at most another third of the space and take two to fifteen times as long to read.
"""

import hashlib
import json
import os
import random
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from PIL import Image
from torch import Tensor

from verl_p2r.media import torchvision_ops
from verl_p2r.media.source import kind_of, local_path

FORMAT = 2  # raise it whenever the bytes of an entry or the frames of an element change
LIBRARIES = ("av", "pillow", "qwen-vl-utils", "torchvision")  # their versions decide which frames an element gives
SUFFIX, PARTIAL = ".frames", ".partial"
HIGH_WATER = 3 / 4  # share of max_bytes above which entries are evicted when a put checks
LOOK_EVERY = 1 / 32  # share of max_bytes written between two checks, on average over all processes
ABANDONED = 3600  # seconds after which a partial file's writer counts as dead


class FrameCache:
    """A directory of frames that many processes and nodes may share.

    Args:
        directory: created if missing; use it for nothing else.
        max_bytes: limit for all entries together. A put checks the directory with a probability proportional to its
            size (on average once per `LOOK_EVERY` of the limit) and then evicts the least recently used entries above
            `HIGH_WATER`. However many processes write, the chance to exceed `max_bytes` before a check is e⁻⁸.

    Raises:
        OSError: the directory cannot be created.

    >>> import tempfile
    >>> cache = FrameCache(tempfile.mkdtemp(), max_bytes=10**9)
    >>> cache.put("0a", torch.full((2, 3, 28, 28), 7, dtype=torch.uint8), {"fps": 25.0, "frames_indices": [0, 9]})
    >>> frames, metadata = cache.get("0a")
    >>> frames.shape, frames.unique().tolist(), metadata
    (torch.Size([2, 3, 28, 28]), [7], {'fps': 25.0, 'frames_indices': [0, 9]})
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int):
        self._directory, self._max_bytes = Path(directory), max_bytes
        self._writable = True
        self._directory.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(element: Mapping[str, Any], factor: int) -> str:
        """Hash everything that decides a video's frames: the file's path, size and time, the element's rules, the code.

        Args:
            element: a video or image element of a message: `video` or `image` is a local path or `file://` URL, a list
                of them, bytes or a picture; every other field except `type` counts as a rule, None as not given.
            factor: the patch size that qwen-vl-utils is called with, in pixels.

        Raises:
            OSError: there is no such file.
            TypeError: the source is of another type.
        """
        kind = kind_of(element)
        rules = {name: value for name, value in element.items() if name not in ("type", kind) and value is not None}
        defaults = {
            name: value
            for name, value in vars(torchvision_ops.qwen()).items()
            if name.isupper() and isinstance(value, int | float | str)  # some come from environment variables
        }
        identity = [_source_of(element[kind]), rules, factor, defaults, _code()]
        text = json.dumps(identity, sort_keys=True, default=methodcaller("item"))  # turns a numpy scalar into a number
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> tuple[Tensor, dict[str, Any]] | None:
        """Read an entry.

        Args:
            key: from `FrameCache.key`.

        Returns:
            Frames, shape (T, 3, H, W), uint8, and their metadata; None when there is no entry, or (with a warning) a
            damaged one, which the next `put` replaces.
        """
        path = self._path(key)
        try:
            packed = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            warnings.warn(f"{path}: cannot be read ({error}): the video is decoded instead", stacklevel=2)
            return None
        with suppress(OSError):  # evicted meanwhile, or owned by another user
            os.utime(path)
        try:
            return _unpack(packed)
        except (zstandard.ZstdError, MemoryError) as error:  # content that passes the checksum is ours
            warnings.warn(f"{path}: damaged ({error}): the video is decoded and the entry rewritten", stacklevel=2)
            return None

    def put(self, key: str, frames: Tensor, metadata: Mapping[str, Any]) -> None:
        """Write or replace an entry. After the first failure and its warning, nothing is written any more.

        Args:
            key: from `FrameCache.key`.
            frames: Shape: (T, 3, H, W), uint8.
            metadata: as qwen-vl-utils gives it: `fps`, `frames_indices`, `total_num_frames`, `video_backend`.

        Raises:
            TypeError: frames are not uint8, or metadata cannot be written as JSON.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames are {frames.dtype}: the cache keeps uint8")
        if not self._writable:
            return
        packed, path = _pack(frames, metadata), self._path(key)
        if len(packed) > self._max_bytes * (1 - HIGH_WATER):
            warnings.warn(
                f"{self._directory}: frames that take more than a quarter of its {self._max_bytes} bytes are not "
                "cached: allow it more",
                stacklevel=2,
            )
            return
        partial = path.with_name(f"{key}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(packed)
            os.replace(partial, path)
        except OSError as error:
            self._writable = False
            warnings.warn(f"{self._directory}: no more frames are cached from here: {error}", stacklevel=2)
            _remove(partial)
            return
        if random.random() * self._max_bytes * LOOK_EVERY < len(packed):
            self._evict()

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / f"{key}{SUFFIX}"

    def _evict(self) -> None:
        """Remove the least recently used entries above the high-water mark, and the files of dead writers."""
        entries = []
        for file, stat in self._files():
            if file.endswith(SUFFIX):
                entries.append((stat.st_mtime_ns, stat.st_size, file))
            elif file.endswith(PARTIAL) and stat.st_mtime < time.time() - ABANDONED:
                _remove(file)
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= self._max_bytes * HIGH_WATER:
                break
            _remove(file)
            total -= size

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for folder, _, names in os.walk(self._directory):
            for name in names:
                file = os.path.join(folder, name)
                try:
                    yield file, os.stat(file)
                except OSError:  # another process evicted it
                    continue


@lru_cache(maxsize=1)
def _code() -> list[Any]:
    return [FORMAT, *map(version, LIBRARIES)]


def _source_of(source: Any) -> Any:
    """Identify a source and its version: a file by path, size and time, data in memory by its hash."""
    if isinstance(source, list | tuple):
        return [_source_of(frame) for frame in source]
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.mode} {source.size} ".encode() + source.tobytes()).hexdigest()
    if not isinstance(source, str):
        raise TypeError(f"a {type(source).__name__} cannot be cached: it has no path and no bytes")
    if source.startswith("data:"):
        return hashlib.sha256(source.encode()).hexdigest()
    path = os.path.realpath(local_path(source))
    stat = os.stat(path)
    return [path, stat.st_size, stat.st_mtime_ns]


def _remove(file: str | Path) -> None:
    with suppress(OSError):  # another process removed it, or this one lacks permission
        os.unlink(file)


def _pack(frames: Tensor, metadata: Mapping[str, Any]) -> bytes:
    """One zstd frame, with a checksum, of: length of the header (4 bytes), header as JSON, pixels."""
    header = json.dumps({"shape": list(frames.shape), "metadata": dict(metadata)}).encode()
    pixels = frames.clone(memory_format=torch.contiguous_format)
    pixels[:, ::2] -= pixels[:, 1:2].clone()
    for axis in (-1, -2):
        size = pixels.shape[axis] - 1
        pixels.narrow(axis, 1, size).sub_(pixels.narrow(axis, 0, size).clone())
    content = b"".join([len(header).to_bytes(4, "little"), header, pixels.numpy().data])
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(content)


def _unpack(packed: bytes) -> tuple[Tensor, dict[str, Any]]:
    content = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    start = 4 + int.from_bytes(content[:4], "little")
    header = json.loads(content[4:start])
    pixels = torch.from_numpy(np.frombuffer(bytearray(content[start:]), np.uint8)).view(header["shape"])
    for axis in (-1, -2):
        pixels = pixels.cumsum(axis, dtype=torch.uint8)
    pixels[:, ::2] += pixels[:, 1:2]
    return pixels, header["metadata"]
