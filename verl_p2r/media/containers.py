# SPDX-License-Identifier: Apache-2.0
"""Reads headers of containers for what FFmpeg cannot tell cheaply: references, sizes, rotations, times.

mp4 and QuickTime (ISO/IEC 14496-12) are nested boxes, Matroska and WebM (RFC 9559) nested elements. Only headers are
read. FFmpeg opens files by its own rules; a file that is not understood here is left to it.
"""

import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from verl_p2r.media.deadline import MediaError
from verl_p2r.media.source import MediaFile

MAX_FRAMES = 1 << 22  # 38 hours at 30 frames per second
MAX_INDEX = 1 << 28  # bytes of an mp4's index
MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
EBML = b"\x1a\x45\xdf\xa3"
SEGMENT, CHAPTERS = 0x18538067, 0x1043A770
EDITION, CHAPTER, ELSEWHERE = 0x45B9, 0xB6, 0x6E67  # EditionEntry, ChapterAtom, ChapterSegmentUUID
NOTHING = memoryview(b"")
BRANCHES = (b"mdia", b"minf", b"dinf", b"stbl")
UPRIGHT = (1 << 16, 0, 0, 1 << 16)


@dataclass(frozen=True)
class Mp4Index:
    """The first video track according to the `moov` box of an mp4.

    Args:
        upright: no track is rotated.
        timescale: units of time per second.
        times: when each sample is shown, in stored order, in units of time; None if the box does not say.
        duration: duration of all samples, in units of time.
    """

    upright: bool
    timescale: int
    times: np.ndarray | None
    duration: int


def inspect_container(file: MediaFile) -> Mp4Index | None:
    """Check a container's headers before FFmpeg opens it.

    Args:
        file: the file.

    Returns:
        The index of an mp4; None for other containers, and for an mp4 whose index is not found.

    Raises:
        MediaError: the file refers to other files, declares too much, or is truncated.
    """
    with file.open() as stream:
        head = stream.read(12)
        if head[4:8] in MP4_FIRST:
            moov = _read_moov(stream, file.name)
            return None if moov is None else _mp4_index(moov, file.name)
        if head[:4] == EBML:
            _check_matroska(stream, file)
    return None


def holds_zeros(file: MediaFile, places: Iterable[tuple[int, int]]) -> bool:
    """Check whether one of the given parts of a file is all zeros.

    Args:
        file: the file.
        places: position and size of each part, in bytes.
    """
    with file.open() as stream:
        for position, size in places:
            stream.seek(position)
            if not any(stream.read(size)):
                return True
    return False


def _read_moov(stream: BinaryIO, name: str) -> memoryview | None:
    stream.seek(0)
    while len(head := stream.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        body = size - 8
        if size == 1:
            body = int.from_bytes(stream.read(8), "big") - 16
        if kind == b"moov":
            if size == 0:
                body = MAX_INDEX  # to the end of the file
            if body > MAX_INDEX:
                raise MediaError(f"{name}: its index declares {body} bytes, more than {MAX_INDEX}: re-encode the video")
            return memoryview(stream.read(max(body, 0)))
        if body < 0 or body >= 1 << 62:
            return None
        stream.seek(body, os.SEEK_CUR)
    return None


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each box in a box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1 and start + 8 <= len(data):
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = len(data) if size == 0 else at + size
        if end < start:
            return
        yield kind, data[start:end]
        at = end


def _leaves(data: memoryview) -> dict[bytes, memoryview]:
    """The innermost boxes of a track, the first of each kind."""
    leaves: dict[bytes, memoryview] = {}
    for kind, content in _boxes(data):
        if kind in BRANCHES:
            leaves = _leaves(content) | leaves
        else:
            leaves.setdefault(kind, content)
    return leaves


def _mp4_index(moov: memoryview, name: str) -> Mp4Index:
    boxes = list(_boxes(moov))
    tracks = [_leaves(content) for kind, content in boxes if kind == b"trak"]
    for track in tracks:
        _check_references(track.get(b"dref", NOTHING), name)
    samples = sum(_number(track.get(b"stsz", NOTHING), 8) for track in tracks)
    if samples > MAX_FRAMES:
        raise MediaError(f"{name}: its index declares {samples} samples, more than {MAX_FRAMES}: cut the video")
    turns = [_turn(content, 36) for kind, content in boxes if kind == b"mvhd"]
    turns += [_turn(track.get(b"tkhd", NOTHING), 40) for track in tracks]
    upright = len(turns) > len(tracks) > 0 and all(turn == UPRIGHT for turn in turns)
    for track in tracks:
        if track.get(b"hdlr", NOTHING)[8:12] == b"vide":
            return Mp4Index(upright, *_sample_times(track))
    return Mp4Index(upright, 0, None, 0)


def _check_references(references: memoryview, name: str) -> None:
    """Refuse a track whose samples are in another file: a data reference without the flag "in this file"."""
    if any(not _number(content, 0) & 1 for _, content in _boxes(references[8:])):
        raise MediaError(f"{name}: it refers to data in another file, which is not opened: re-encode the video")


def _number(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _turn(header: memoryview, offset: int) -> tuple[int, ...]:
    """The rotation in a header's matrix: its first, second, fourth and fifth numbers."""
    start = offset + 12 if header[:1] == b"\x01" else offset  # version 1 has longer times
    matrix = struct.unpack(">9i", bytes(header[start : start + 36]).ljust(36, b"\0"))
    return matrix[0], matrix[1], matrix[3], matrix[4]


def _sample_times(track: dict[bytes, memoryview]) -> tuple[int, np.ndarray | None, int]:
    """Time scale, presentation times and duration of a track's samples."""
    header = track.get(b"mdhd", NOTHING)
    timescale = _number(header, 20 if header[:1] == b"\x01" else 12)
    runs, offsets = _runs(track.get(b"stts", NOTHING)), _runs(track.get(b"ctts", NOTHING))
    total = int(runs[:, 0].sum())
    if not 0 < total <= MAX_FRAMES or not timescale or (len(offsets) and int(offsets[:, 0].sum()) != total):
        return timescale, None, 0
    steps = np.repeat(runs[:, 1], runs[:, 0])
    times = np.cumsum(steps)
    duration = int(times[-1])
    times -= steps
    if len(offsets):
        times += np.repeat(offsets[:, 1].astype(np.int32), offsets[:, 0])  # they may be negative
    return timescale, times, duration


def _runs(table: memoryview) -> np.ndarray:
    """A table of runs: count and value."""
    most = min(_number(table, 4), (len(table) - 8) // 8)
    if most <= 0:
        return np.empty((0, 2), np.int64)
    return np.frombuffer(table, ">u4", most * 2, 8).astype(np.int64).reshape(-1, 2)


def _check_matroska(stream: BinaryIO, file: MediaFile) -> None:
    """Refuse a Matroska file that is truncated, or whose chapters play other files."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    for kind, start, size in _elements(stream, end):
        if kind != SEGMENT:
            stream.seek(start + (size or 0))
            continue
        if size is not None and start + size > end:
            raise MediaError(f"{file.name}: the file is truncated: it has {end} of {start + size} bytes")
        for child, begin, length in _elements(stream, end):
            if length is None:  # a live recording
                return
            if child == CHAPTERS and _plays_other_files(stream.read(min(length, MAX_INDEX))):
                raise MediaError(f"{file.name}: its chapters are parts of other files, which are not opened")
            stream.seek(begin + length)
        return


def _plays_other_files(content: bytes) -> bool:
    """Whether a chapter in this content plays a part of another file."""
    stream = io.BytesIO(content)
    for kind, start, size in _elements(stream, len(content)):
        if kind == ELSEWHERE:
            return True
        end = len(content) if size is None else start + size
        if kind in (EDITION, CHAPTER) and _plays_other_files(content[start:end]):
            return True
        stream.seek(end)
    return False


def _elements(stream: BinaryIO, end: int) -> Iterator[tuple[int, int, int | None]]:
    """The elements from here on: number, start of the content, and its size (None if unknown)."""
    while stream.tell() < end:
        number, _ = _vint(stream, keep_marker=True)
        size, unknown = _vint(stream)
        if number < 0 or size < 0:
            return
        yield number, stream.tell(), None if unknown else size


def _vint(stream: BinaryIO, keep_marker: bool = False) -> tuple[int, bool]:
    """A number of variable length, -1 if there is none; and whether all its bits are set."""
    first = stream.read(1)
    if not first or not first[0]:
        return -1, False
    length = 9 - first[0].bit_length()
    data = first + stream.read(length - 1)
    if len(data) < length:
        return -1, False
    value, bits = int.from_bytes(data, "big"), 7 * length
    mask = (1 << bits) - 1
    return (value if keep_marker else value & mask), value & mask == mask
