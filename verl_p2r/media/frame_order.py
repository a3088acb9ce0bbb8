# SPDX-License-Identifier: Apache-2.0
"""Finding a frame by its number: by counting from the start, or by seeking where timestamps prove the number."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from verl_p2r.cpus import available_cpus
from verl_p2r.media.source import Deadline

THREADS = min(4, available_cpus())  # of one decoder; many files are decoded at once
LARGE = 1 << 23  # pixels of a frame from which a decoder has one thread: each thread holds frames of its own
WORTH_A_SEEK = 16  # frames that a seek must leave out; the decoder's threads start anew after it


def _use_threads(stream: Any) -> None:
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = THREADS if stream.width * stream.height < LARGE else 1


def in_order(container: Any, stream: Any, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the start and count."""
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
    """Decode from the key frame before each wanted frame; stop at the first doubt about a frame's index."""
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
            container.seek(timeline.doors[key], stream=stream)
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
    """What the packets of a file tell of its frames; times are in units of the stream.

    Args:
        times: of each frame, in the order in which they are shown.
        keys: the indices of the key frames.
        doors: for each key frame, the time to seek to.
        sizes: of the key frames' packets, in bytes.
    """

    times: np.ndarray
    keys: np.ndarray
    doors: Sequence[int]
    sizes: Sequence[int]


def _timeline(container: Any, stream: Any, deadline: Deadline) -> _Timeline | None:
    """Read the timestamps of all packets, without decoding; None when they do not prove the order of frames."""
    stored, key_times, doors, sizes = (array("q") for _ in range(4))
    for packet in container.demux(stream):
        deadline.check()
        if not packet.size:
            continue
        if packet.pts is None or packet.is_discard:
            return None
        stored.append(packet.pts)
        if packet.is_keyframe:
            key_times.append(packet.pts)
            doors.append(packet.pts if packet.dts is None else packet.dts)
            sizes.append(packet.size)
    times = np.sort(np.array(stored))
    if not doors or key_times[0] != times[0] or (np.diff(times) <= 0).any() or (np.diff(key_times) <= 0).any():
        return None
    if stream.codec_context.has_b_frames and np.array_equal(times, stored):
        return None  # AVI, for one, numbers frames as they are stored, not as they are shown
    return _Timeline(times, np.searchsorted(times, key_times), doors, sizes)


def _decode_from(container: Any, stream: Any, time: int, size: int) -> Iterator[av.VideoFrame]:
    """Decode, after a seek, from the key frame that has a time and a size.

    Some containers arrive a little before it; some guess other times there (MPEG program streams).
    """
    arrived = False
    for packet in container.demux(stream):
        arrived = arrived or (packet.pts, packet.size) == (time, size)
        if arrived:
            yield from packet.decode()
        elif packet.is_keyframe and packet.pts is not None and packet.pts > time:
            return
