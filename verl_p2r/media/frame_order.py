# SPDX-License-Identifier: Apache-2.0
"""Finds frames by their index: by counting from the start, or by seeking if timestamps prove the index."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from verl_p2r.cpus import available_cpus
from verl_p2r.media.deadline import Deadline

THREADS = min(4, available_cpus())  # per decoder; many files are decoded at once
LARGE = 1 << 23  # pixels; a decoder of larger frames has one thread, because each thread holds its own frames
WORTH_A_SEEK = 16  # frames that a seek must skip, because the decoder's threads restart after it


def _use_threads(stream: Any) -> None:
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = THREADS if stream.width * stream.height < LARGE else 1


def in_order(container: Any, stream: Any, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the start and count.

    Args:
        container: opened by PyAV.
        stream: its video stream.
        wanted: ascending indices of frames.
        deadline: deadline of the file.

    Yields:
        The index and the frame, for each wanted frame found.
    """
    _use_threads(stream)
    ahead = set(wanted)
    for index, frame in enumerate(container.decode(stream)):
        deadline.check()
        if index in ahead:
            yield index, frame
        if index >= wanted[-1]:
            return


def by_seeking(
    container: Any, stream: Any, wanted: list[int], deadline: Deadline
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the key frame before each wanted frame; stop when the index of a frame is in doubt.

    Args:
        container: opened by PyAV.
        stream: its video stream.
        wanted: ascending indices of frames.
        deadline: deadline of the file.

    Yields:
        The index and the frame, for each wanted frame found.
    """
    _use_threads(stream)
    timeline = _timeline(container, stream, deadline)
    if timeline is None or wanted[-1] >= len(timeline.times):
        return
    times, keys = timeline.times, timeline.keys
    at = -1
    frames: Iterator[av.VideoFrame] | None = None
    for index in wanted:
        key = int(np.searchsorted(keys, index, side="right")) - 1
        if frames is None or keys[key] > at + WORTH_A_SEEK:
            container.seek(timeline.seek_times[key], stream=stream)
            frames = _decode_from(container, stream, int(times[keys[key]]), timeline.sizes[key])
        for frame in frames:
            deadline.check()
            at = len(times) if frame.pts is None else int(np.searchsorted(times, frame.pts))
            if at >= index:
                break
        if at != index or frame.pts != times[at]:
            return
        yield index, frame


class _Timeline(NamedTuple):
    """The frames of a file according to its packets; times are in units of the stream.

    Args:
        times: times of the frames, in display order.
        keys: indices of the key frames.
        seek_times: for each key frame, the time to seek to.
        sizes: sizes of the key frames' packets, in bytes.
    """

    times: np.ndarray
    keys: np.ndarray
    seek_times: Sequence[int]
    sizes: Sequence[int]


def _timeline(container: Any, stream: Any, deadline: Deadline) -> _Timeline | None:
    """Read the timestamps of all packets without decoding; None if they do not prove the order of the frames."""
    stored, key_times, seek_times, sizes = (array("q") for _ in range(4))
    for packet in container.demux(stream):
        deadline.check()
        if not packet.size:
            continue
        if packet.pts is None or packet.is_discard:
            return None
        stored.append(packet.pts)
        if packet.is_keyframe:
            key_times.append(packet.pts)
            seek_times.append(packet.pts if packet.dts is None else packet.dts)
            sizes.append(packet.size)
    times = np.sort(np.array(stored))
    if not seek_times or key_times[0] != times[0] or (np.diff(times) <= 0).any() or (np.diff(key_times) <= 0).any():
        return None
    if stream.codec_context.has_b_frames and np.array_equal(times, stored):
        return None  # AVI, for example, numbers frames in stored order, not in display order
    return _Timeline(times, np.searchsorted(times, key_times), seek_times, sizes)


def _decode_from(container: Any, stream: Any, time: int, size: int) -> Iterator[av.VideoFrame]:
    """Decode, after a seek, from the key frame with this time and packet size.

    In some containers a seek ends a little before it; MPEG program streams report other times there.
    """
    arrived = False
    for packet in container.demux(stream):
        arrived = arrived or (packet.pts, packet.size) == (time, size)
        if arrived:
            yield from packet.decode()
        elif packet.is_keyframe and packet.pts is not None and packet.pts > time:
            return
