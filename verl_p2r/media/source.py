# SPDX-License-Identifier: Apache-2.0
"""Opens the source of a media element safely: regular files, encoded bytes, pictures and, if allowed, URLs.

A *canonical element* is `{"type": kind, kind: source, **rules}`. Its source is a local path, a list of paths of frames,
the bytes of an encoded file (also as a `data:` URL), a PIL image, or an http(s) URL. A URL is refused unless the
element says `allow_urls: True`, which only a user's settings write into it.
"""

import base64
import binascii
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from verl_p2r.media.deadline import TIMEOUT_VARIABLE as TIMEOUT_VARIABLE
from verl_p2r.media.deadline import Deadline as Deadline
from verl_p2r.media.deadline import MediaError as MediaError
from verl_p2r.media.deadline import RulesError as RulesError
from verl_p2r.media.local_files import is_local_file

URLS = ("http://", "https://")
SHOWN = 200  # characters of a source in messages


@dataclass(frozen=True)
class MediaFile:
    """An encoded file on disk or in memory.

    Args:
        content: its path, or its bytes.
        name: for messages.
        deadline: for all work on it.
    """

    content: str | bytes
    name: str
    deadline: Deadline

    @classmethod
    def of(cls, content: str | bytes, deadline: Deadline | None = None) -> "MediaFile":
        """Wrap a path or bytes.

        Args:
            content: a path, or the bytes of a file.
            deadline: None starts a new one.
        """
        name = content if isinstance(content, str) else f"<{len(content)} bytes>"
        return cls(content, name, deadline or Deadline(name))

    def open(self) -> BinaryIO:
        """Open it for reading; each read checks the deadline.

        Raises:
            MediaError: it is not a regular file, or may not be read.
        """
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        self.check()
        try:
            return _Timed(os.open(self.content, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), self.deadline)
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be opened ({error})") from error

    def check(self) -> None:
        """Raise a `MediaError` unless it is a regular file, or bytes: a pipe or a device could block forever."""
        if isinstance(self.content, str) and not is_local_file(self.content):
            raise MediaError(f"{self.name}: no such file (media are read from regular local files)")


class _Timed(io.FileIO):
    """A file whose reads check a deadline."""

    def __init__(self, descriptor: int, deadline: Deadline):
        super().__init__(descriptor, "rb")
        self._deadline = deadline

    def read(self, size: int = -1, /) -> bytes:  # type: ignore[override]
        self._deadline.check()
        return super().read(size) or b""


def kind_of(element: Mapping[str, Any]) -> str:
    """Tell a video from an image by the key that holds the source.

    >>> kind_of({"video": "a.mp4"})
    'video'
    """
    return "video" if "video" in element else "image"


def name_of(element: Mapping[str, Any]) -> str:
    """Name an element's source in messages: its path or URL, or the kind of data.

    >>> name_of({"image": b"abc"}), name_of({"video": ["a/0.jpg", "a/1.jpg"]})
    ('<3 bytes>', 'a/0.jpg and 1 more frames')
    """
    source = element.get(kind_of(element))
    if isinstance(source, str):
        return source if len(source) <= SHOWN else f"{source[:SHOWN]}…"
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, list | tuple) and source and isinstance(source[0], str):
        return f"{source[0]} and {len(source) - 1} more frames"
    return f"<{type(source).__name__}>"


def local_path(source: str) -> str:
    """Remove the `file://` that qwen-vl-utils allows before a path.

    >>> local_path("file:///data/a.mp4")
    '/data/a.mp4'
    """
    return source.removeprefix("file://")


def resolve(source: Any, element: Mapping[str, Any], deadline: Deadline) -> Any:
    """Turn a source, or one frame of a list, into what can be opened.

    Args:
        source: as in a canonical element.
        element: the element it belongs to; its `allow_urls` decides about URLs.
        deadline: deadline of the element.

    Returns:
        A `MediaFile`; a PIL image as it is.

    Raises:
        MediaError: a URL that is not allowed or cannot be read, a damaged `data:` URL, or another type.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str) and source.startswith("data:"):
        source = decode_data_url(source)
    elif isinstance(source, str) and source.lower().startswith(URLS):
        if element.get("allow_urls") is not True:
            raise MediaError(f"{source[:SHOWN]}: URLs are not read: download the file, or set data.p2r.allow_urls")
        from verl_p2r.media.download import download

        source = download(source, deadline)
    elif isinstance(source, str):
        source = local_path(source)
        if "://" in source:
            raise MediaError(f"{source[:SHOWN]}: no such file (media are read from regular local files)")
    if isinstance(source, str | bytes):
        return MediaFile(source, deadline.name if isinstance(source, bytes) else source, deadline)
    raise MediaError(f"{deadline.name}: a {type(source).__name__} is not a medium: give a path, bytes or a picture")


def decode_data_url(url: str) -> bytes:
    """Decode a `data:` URL.

    Raises:
        MediaError: its content is not base64.

    >>> decode_data_url("data:image/png;base64,QUJD")
    b'ABC'
    """
    head, comma, data = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not say ;base64,")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MediaError(f"{url[:40]}…: a damaged data URL: {error}") from error
