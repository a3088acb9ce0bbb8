# SPDX-License-Identifier: Apache-2.0
"""Reads media in any of the shapes that rows and records use into one canonical shape.

A medium may be a path, a list of frame paths, an encoded file in memory, a `data:` URL, a picture, a mapping of the
Hugging Face features `Image` and `Video`, an element of verl or qwen-vl-utils, or a content part of OpenAI's protocol.
Every reader of media (training, screening, the data tools) uses the canonical element that `read_element` returns:

    {"type": kind, kind: source, **rules}     kind    `image` or `video`
                                              source  a local path; for a video also a list of paths, one for each
                                                      frame; `bytes`; a PIL image; an http(s) URL if URLs are allowed
                                              rules   names in `fields.MEDIA_FIELDS`, with ints and floats
"""

import binascii
import os
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import MEDIA_FIELDS, rules_of
from verl_p2r.data.values import is_unset, plain, shown

KINDS = ("image", "video")
OUTSIDE, URL = "outside the media root", "media behind a URL"

# Lists of frames carry their frame rate, under names that qwen-vl-utils reads.
_RULES = {"image": MEDIA_FIELDS["image"], "video": {**MEDIA_FIELDS["video"], "sample_fps": float, "raw_fps": float}}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DEEPEST = 3  # nested mappings: a content part and its `image_url` need two


@dataclass(frozen=True)
class MediaSources:
    """Where media may come from.

    Args:
        root: folder that paths are relative to and must not leave; None for the working directory, and for paths that
            lead anywhere.
        allow_outside_root: allow paths to leave the root, by `..`, from `/`, or through symbolic links.
        allow_urls: allow media to be http(s) URLs.
        outside_setting: the setting that allows paths outside the root, for messages.
    """

    root: str | None = None
    allow_outside_root: bool = False
    allow_urls: bool = False
    outside_setting: str = "data.p2r.allow_outside_media_root=True"


ANYWHERE = MediaSources()


def read_element(value: Any, kind: str, field: str, sources: MediaSources = ANYWHERE) -> dict[str, Any]:
    """Read one medium in any shape.

    Args:
        value: the medium; see the module's docstring.
        kind: `image` or `video`.
        field: field of the row, for errors.
        sources: where the medium may come from.

    Returns:
        The canonical element. Reading it again gives the same element.

    Raises:
        RowError: the reason is `no media` if nothing names a medium, `bad media` for a shape or a rule that cannot be
            read, `outside the media root`, or `media behind a URL`. Whether the file exists is not checked.

    Edge rules [ours]:
        `bytes` win over `path`, as in Hugging Face's features. Values that are None or NaN are not set. Other keys of a
        mapping are ignored, but a key that is almost the name of a rule is refused.

    >>> read_element({"path": "a.png", "bytes": None}, "image", "images")
    {'type': 'image', 'image': 'a.png'}
    >>> read_element({"type": "video_url", "video_url": {"url": "file:///data/a.mp4"}, "fps": "2"}, "video", "videos")
    {'type': 'video', 'video': '/data/a.mp4', 'fps': 2.0}
    >>> read_element("data:image/png;base64,iVBORw==", "image", "images")
    {'type': 'image', 'image': b'\\x89PNG'}
    """
    value = plain(value)
    rules: dict[str, Any] = {}
    if isinstance(value, Mapping):
        known = value.keys() & _NAMES[kind]
        if known != {kind} or isinstance(value[kind], Mapping) or not value.keys() <= _KNOWN[kind]:
            _check_keys(value, kind, field)
            source = _source_in(value, kind, field)
        else:
            source = plain(value[kind])
            if "type" in value and value["type"] != kind:
                _check_keys(value, kind, field)
        rules, value = rules_of(value, _RULES[kind], field), source
    element = {"type": kind, kind: _source(value, kind, field, sources), **rules}
    if sources.allow_urls and isinstance(element[kind], str) and _SCHEME.match(element[kind]):
        element["allow_urls"] = True  # checked where URLs are opened
    return element


def read_made_element(part: Mapping[str, Any], kind: str, field: str) -> dict[str, Any]:
    """Read an element that `read_element` has made; a URL that was allowed then still is.

    Raises:
        RowError: the part is not such an element.
    """
    return read_element(part, kind, field, MediaSources(allow_urls=part.get("allow_urls") is True))


def names_medium(part: Mapping[str, Any], kind: str) -> bool:
    """Return whether a content part names its medium; `{"type": "image"}` alone stands for one in the columns."""
    return any(not is_unset(plain(part.get(name))) for name in _NAMES[kind])


def kind_of(part: Mapping[str, Any]) -> str | None:
    """Return the kind of medium in a content part; `image`, `image_url` and `input_image` are images.

    >>> kind_of({"type": "video_url"}), kind_of({"type": "text"}), kind_of({"type": ["image"]})
    ('video', None, None)
    """
    named = part.get("type")
    return _PART_KINDS.get(named) if isinstance(named, str) else None


_PART_KINDS = {name: kind for kind in KINDS for name in (kind, f"{kind}_url", f"input_{kind}")}


# Keys that may name a medium.
_NAMES = {kind: frozenset((kind, f"{kind}_url", f"input_{kind}", "bytes", "base64", "url", "path")) for kind in KINDS}
_KNOWN = {kind: frozenset((kind, "type", "allow_urls", *_RULES[kind])) for kind in KINDS}


def _source_in(value: Mapping[Any, Any], kind: str, field: str) -> Any:
    """Return what names the medium in a mapping, or in a mapping inside it."""
    source: Any = value
    for _ in range(_DEEPEST):
        named = {name: item for name in _NAMES[kind] if not is_unset(item := plain(source.get(name)))}
        if named.keys() == {"bytes", "path"}:
            del named["path"]
        if not named:
            break
        if len(named) > 1:
            raise _bad(field, value, f"names its {kind} under {' and '.join(sorted(named))}: keep one of them")
        ((name, source),) = named.items()
        if name == "base64" and isinstance(source, str):
            return f"data:;base64,{source}"
        if not isinstance(source, Mapping):
            return source
        if inner := rules_of(source, _RULES[kind], field):
            raise _bad(field, value, f"holds {', '.join(inner)} inside {name!r}: write them next to it")
    held = {name: item for name, item in value.items() if not is_unset(item)}
    raise RowError(
        field, "no media", f"field {field} holds {shown(held)}, without a path in {kind!r}: add it, or drop the row"
    )


def _check_keys(value: Mapping[Any, Any], kind: str, field: str) -> None:
    """Refuse a part of another type, and a rule whose name is almost right, which would be ignored silently."""
    for name, item in value.items():
        if name in _RULES[kind] or name in _NAMES[kind] or name == "allow_urls":
            continue
        if name == "type":
            if not is_unset(item) and (not isinstance(item, str) or _PART_KINDS.get(item) != kind):
                raise _bad(field, value, f"has the type {shown(item)}: give {kind!r}")
        elif isinstance(name, str) and not is_unset(item):
            near = get_close_matches(name, _RULES[kind], n=1, cutoff=0.85)
            if near:
                raise _bad(field, value, f"holds {name!r}: did you mean {near[0]!r}?")


def _source(source: Any, kind: str, field: str, sources: MediaSources) -> Any:
    if isinstance(source, str):
        return _named(source, field, sources)
    if isinstance(source, os.PathLike):
        return _named(str(source), field, sources)
    if isinstance(source, bytes | bytearray | memoryview) and len(source):
        return bytes(source)
    if kind == "video" and isinstance(source, list | tuple) and source:
        return [_frame(frame, field, sources) for frame in source]
    if kind == "image" and _is_picture(source):
        return source
    if source is None or (isinstance(source, list | tuple | bytes) and not source):
        raise RowError(field, "no media", f"field {field} holds an empty {kind}: give its path, or drop the row")
    shapes = "a path, or a list of the paths of its frames" if kind == "video" else "a path or an encoded file"
    raise _bad(field, source, f"is not {'an' if kind == 'image' else 'a'} {kind}: give {shapes}")


def _frame(frame: Any, field: str, sources: MediaSources) -> str:
    """Read a frame of a video that is a list of files."""
    read = read_element(frame, "image", field, sources)["image"]
    if not isinstance(read, str) or _SCHEME.match(read):
        raise _bad(field, frame, "is a frame that is not a local file: write frames to files, and give their paths")
    return read


def _is_picture(source: Any) -> bool:
    from PIL import Image

    return isinstance(source, Image.Image)


def _named(text: str, field: str, sources: MediaSources) -> str | bytes:
    if is_unset(text):
        raise RowError(field, "no media", f"field {field} holds {text!r} for a path: give one, or drop the row")
    if text[:5].lower() == "data:":
        return _data(text, field)
    scheme = _SCHEME.match(text)
    if scheme is not None:
        name, rest = scheme[1].lower(), text[scheme.end() :]
        if name in ("http", "https"):
            if sources.allow_urls:
                return f"{name}://{rest}"
            raise RowError(
                field,
                URL,
                f"field {field} names a URL, {shown(text)}: download the file, or set data.p2r.allow_urls",
            )
        if name != "file" or _SCHEME.match(rest):
            raise RowError(field, URL, f"field {field} names a URL, {shown(text)}: give the path of a local file")
        text = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return text if sources.root is None else _below_root(text, field, sources.root, sources)


def _data(url: str, field: str) -> bytes:
    """Return the file in a `data:` URL (RFC 2397)."""
    head, comma, body = url.partition(",")
    try:
        data = b64decode(body, validate=True) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise _bad(field, url, f"is a data: URL that cannot be read ({error}): encode it again") from error
    if not comma or not data:
        raise _bad(field, url, "is a data: URL without data: encode the file again")
    return data


def _below_root(path: str, field: str, root: str, sources: MediaSources) -> str:
    joined = os.path.join(os.path.expanduser(root), path.removeprefix("./"))
    if sources.allow_outside_root:
        return joined
    try:
        real, real_root = _real(joined), _real_folder(os.path.expanduser(root))
    except (OSError, ValueError):  # no file can have this name
        real, real_root = os.path.normpath(joined), os.path.normpath(os.path.expanduser(root))
    if not real.startswith(real_root.rstrip(os.sep) + os.sep):
        link = "" if os.path.normpath(joined) == real else f" (it leads to {shown(real)})"
        raise RowError(
            field,
            OUTSIDE,
            f"field {field} names {shown(path)}, which is outside the media root {root}{link}: move the file there, or "
            f"set {sources.outside_setting}",
        )
    return joined


def _real(path: str) -> str:
    """Resolve symbolic links and `..` in a path; a folder of many files is resolved once."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir) or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=1 << 16)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _bad(field: str, value: Any, what: str) -> RowError:
    return RowError(field, "bad media", f"field {field}: {shown(value)} {what}")
