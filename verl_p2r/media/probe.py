# SPDX-License-Identifier: Apache-2.0
"""Reads from the containers of videos and images what screening needs to know."""

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import add
from typing import Any, NamedTuple

import av
import numpy as np

from verl_p2r.media.containers import MAX_FRAMES, Mp4Index, holds_zeros, inspect_container
from verl_p2r.media.deadline import TIMEOUT_VARIABLE as TIMEOUT_VARIABLE
from verl_p2r.media.deadline import Deadline, MediaError
from verl_p2r.media.images import probe_image
from verl_p2r.media.opening import open_video
from verl_p2r.media.rules import checked
from verl_p2r.media.sampling import FRAME_LIST_FPS, VideoInfo, shown_times
from verl_p2r.media.source import MediaFile, kind_of, name_of, resolve

CHECK_EVERY = 4096  # entries of an index between two checks of the deadline
ENDLESS = ("mpegts", "mpeg", "asf", "ogg", "flv", "rm")  # containers that do not say where they end
TAIL = 1 << 26  # bytes of packets kept to decode the end of such a file
AGREEMENT = 0.05  # share by which the measured rate may differ from the declared one if some frames have no times


def probe_element(element: Mapping[str, Any]) -> VideoInfo | tuple[int, int]:
    """Check that an element's medium can be used, and read its size.

    Args:
        element: a canonical element; see `source.py`.

    Returns:
        For a video or a list of frames its `VideoInfo`; for an image its upright height and width, in pixels.

    Raises:
        MediaError: the medium is missing, of another kind, truncated, too large, or slower than the deadline.
    """
    kind, deadline = kind_of(element), Deadline(name_of(element))
    source = element.get(kind)
    try:
        if kind == "image":
            return probe_image(source, element, deadline)
        if isinstance(source, list | tuple):
            return probe_frame_list(element, deadline)
        file = resolve(source, element, deadline)
        if not isinstance(file, MediaFile):
            raise MediaError(f"{deadline.name}: a picture is not a video: give a list of them")
        return probe_file(file)
    except MediaError:
        raise
    except Exception as error:  # libraries may raise anything on damaged files
        raise MediaError(f"{deadline.name}: cannot be read ({type(error).__name__}: {error})") from error


def probe_video(path: str | bytes) -> VideoInfo:
    """Probe a video file, see `probe_file`.

    Args:
        path: path of the file, or its bytes.
    """
    return probe_file(MediaFile.of(path))


def probe_file(file: MediaFile) -> VideoInfo:
    """Read the properties of a video from its container.

    The first frame is decoded only if nothing else tells whether the picture is rotated; that is not needed for an
    upright mp4. An mp4 whose first or last packet is all zeros, as after an unfinished download, is refused.

    Args:
        file: the file.

    Returns:
        Its properties. The number of frames is the container's own if it has one; otherwise all packets are counted,
        and the frame rate is measured if it differs from the declared one. If a frame is shown half a frame or more
        away from its place at that rate, the times of all frames are included. Containers without times (AVI,
        elementary streams) show their frames evenly at the declared rate.

    Raises:
        MediaError: the file is missing, truncated, too slow, has no video frames, is not a container of a known
            format, or has times that contradict each other.
    """
    index = inspect_container(file)
    # Without decoding, FFmpeg opens a file in a quarter of the time; what it cannot tell then is read below.
    with open_video(file, None if index is None else "mov", skip_frame="all") as (container, stream):
        table = _read_table(container, stream, file)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        total, times = 0, None
        if stream.frames and index is not None:
            known, times = _times_in(index, table, fps)
            # A file cut out of a stream may start between key frames; frames that cannot be decoded do not count.
            total = len(table.shown) if known and table.starts_with_key else 0
            if total and fps > 0 and stream.width and index.upright:
                if holds_zeros(file, table.ends):
                    raise MediaError(f"{file.name}: the file holds zeros instead of video: it is incomplete")
                return VideoInfo(total, _rate(times, fps), stream.height, stream.width, times)
        elif "avi" in container.format.name and stream.frames == table.entries and not table.gaps:
            total = stream.frames
        frame, packets = _first_frame(container, stream, file, count=not total)
        if not total:
            last = max(packets.times, default=0) * float(stream.time_base) * fps
            if "avi" in container.format.name and table.entries < packets.total and round(last) + 1 < stream.frames:
                raise MediaError(f"{file.name}: the file is truncated: {packets.total} of {stream.frames} frames")
            _read_table(container, stream, file)  # fragments list their frames only as they are read
            if container.format.name in ENDLESS:
                packets = _without_cut_end(packets, stream, file)
            total = packets.total
            fps, times = _measured(packets, float(stream.time_base), fps, file)
    if frame is None or fps <= 0 or not total:
        raise MediaError(f"{file.name}: the file has no video frames")
    upright = (frame.width, frame.height) if round(frame.rotation / 90) % 2 else (frame.height, frame.width)
    return VideoInfo(total, _rate(times, fps), *upright, times)


def probe_frame_list(element: Mapping[str, Any], deadline: Deadline) -> VideoInfo:
    """Probe a list of frames as images, which must all have the same size.

    Args:
        element: a canonical video element with a list of frames.
        deadline: for all of them.

    Raises:
        MediaError: a frame cannot be used, sizes differ, or there are none or too many.
    """
    frames = element["video"]
    rules = checked({"video": frames, "sample_fps": element.get("sample_fps")})  # the only fields that matter here
    if not frames or len(frames) > MAX_FRAMES:
        raise MediaError(f"{deadline.name}: a list of {len(frames)} frames is not a video: give 1 to {MAX_FRAMES}")
    sizes = [probe_image(frame, element, deadline) for frame in frames]
    if different := next((i for i, size in enumerate(sizes) if size != sizes[0]), None):
        raise MediaError(
            f"{name_of({'image': frames[different]})}: frame {different} of the list has {sizes[different]} pixels and "
            f"the first {sizes[0]} (height, width): give frames of one size"
        )
    return VideoInfo(len(frames), float(rules.get("sample_fps", FRAME_LIST_FPS)), *sizes[0])


class _Table(NamedTuple):
    """A container's index of its packets.

    Args:
        entries: number of packets.
        shown: positions in the index of the packets that are shown.
        ends: position and size in the file of the first and the last of these, in bytes.
        starts_with_key: the first entry is a key frame.
        gaps: an entry is empty, so the frame before it is shown for longer.
    """

    entries: int
    shown: Sequence[int]
    ends: Sequence[tuple[int, int]]
    starts_with_key: bool
    gaps: bool


def _read_table(container: Any, stream: Any, file: MediaFile) -> _Table:
    """Read FFmpeg's index of a stream.

    Raises:
        MediaError: it has too many entries, or points beyond the end of the file.
    """
    entries = stream.index_entries
    if len(entries) > MAX_FRAMES:
        raise MediaError(f"{file.name}: its index has more than {MAX_FRAMES} frames: cut the video")
    shown: list[int] = []
    end, gaps = 0, False
    places: dict[int, tuple[int, int]] = {}
    for start in range(0, len(entries), CHECK_EVERY):
        file.deadline.check()
        part = entries[start : start + CHECK_EVERY]
        positions, sizes = [entry.pos for entry in part], [entry.size for entry in part]
        end, gaps = max(end, *map(add, positions, sizes)), gaps or not all(sizes)
        seen = [i for i, entry in enumerate(part, start) if not entry.is_discard]
        shown += seen
        places |= {i: (positions[i - start], sizes[i - start]) for i in (*seen[:1], *seen[-1:])}
    if end > container.size:
        raise MediaError(f"{file.name}: the file is truncated: it has {container.size} of at least {end} bytes")
    ends = [places[shown[0]], places[shown[-1]]] if shown else []
    return _Table(len(entries), shown, ends, len(entries) > 0 and entries[0].is_keyframe, gaps)


def _times_in(index: Mp4Index, table: _Table, fps: float) -> tuple[bool, array | None]:
    """Whether an mp4's index gives the times of its frames; and the times, if they are not evenly spaced."""
    if index.times is None or fps <= 0:
        return False, None
    stored = index.times / index.timescale
    if shown_times(np.sort(stored), fps) is None:
        return True, None  # all samples are even, and so are those that an edit list shows
    if len(stored) != table.entries or not table.shown:
        return False, None
    whole = len(table.shown) == table.entries
    end = stored.min() + index.duration / index.timescale if whole else None
    return True, shown_times(np.sort(stored[np.asarray(table.shown)]), fps, end)


def _rate(times: array | None, fps: float) -> float:
    return fps if times is None else (len(times) - 1) / times[-1]


class _Packets(NamedTuple):
    """The packets of a stream.

    Args:
        total: number of packets that are shown.
        times: stored times of these, of those that have one; in units of the stream.
        in_order: key frames are in the order of their times.
        tail: the packets from the last key frame on; empty if they are too large.
    """

    total: int
    times: array
    in_order: bool
    tail: Sequence[Any]


def _first_frame(container: Any, stream: Any, file: MediaFile, count: bool) -> tuple[av.VideoFrame | None, _Packets]:
    """Decode the first frame; with `count` also read the times of all packets."""
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.thread_count = 1
    frame, times, decodable, total, in_order, key_time = None, array("q"), False, 0, True, None
    tail: list[Any] = []
    size = 0  # bytes of the tail
    for packet in container.demux(stream):
        file.deadline.check()
        decodable |= packet.is_keyframe
        tail, size = ([], 0) if packet.is_keyframe else (tail, size)
        size += packet.size
        if count and size <= TAIL:
            tail.append(packet)
        if packet.size and not packet.is_discard and decodable:
            total += 1
            if packet.pts is not None:
                times.append(packet.pts)
                if packet.is_keyframe:
                    in_order &= key_time is None or packet.pts > key_time
                    key_time = packet.pts
            if total > MAX_FRAMES:
                raise MediaError(f"{file.name}: it has more than {MAX_FRAMES} frames: cut the video")
        frame = frame or next(iter(packet.decode()), None)
        if not count and not frame and packet.is_keyframe and not packet.is_discard:
            frame = next(iter(stream.codec_context.decode(None)), None)  # otherwise the decoder waits for more packets
            stream.codec_context.flush_buffers()
        if frame and not count:
            break
    return frame, _Packets(total, times, in_order, tail if size <= TAIL else [])


def _without_cut_end(packets: _Packets, stream: Any, file: MediaFile) -> _Packets:
    """Leave out frames after the last key frame that do not decode, such as the last one of a truncated file."""
    shown = [packet.pts for packet in packets.tail if packet.size and not packet.is_discard]
    if not shown or None in shown or len(packets.times) < packets.total:
        return packets
    stream.codec_context.flush_buffers()
    decoded = set()
    with suppress(av.error.InvalidDataError):  # decoding in order ends there as well
        for packet in packets.tail:
            file.deadline.check()
            decoded |= {frame.pts for frame in packet.decode()}
    lost = {pts for pts in shown if pts >= shown[0]} - decoded  # earlier ones need other frames
    times = array("q", [pts for pts in packets.times if pts not in lost])
    return packets._replace(total=len(times), times=times)


def _measured(packets: _Packets, time_base: float, declared: float, file: MediaFile) -> tuple[float, array | None]:
    """Frames per second, and the times of the frames if they are not evenly spaced.

    Raises:
        MediaError: the times contradict each other.
    """
    moments = np.sort(np.asarray(packets.times, np.float64)) * time_base
    if not len(moments):
        return declared, None
    seconds = moments[-1] - moments[0]
    if len(moments) < packets.total:  # some have no time: assume even spacing if that fits the others
        if abs(declared * seconds - packets.total) > AGREEMENT * packets.total + 2:
            raise MediaError(
                f"{file.name}: the times of its frames cannot be trusted: some are missing, and the others contradict "
                f"the {declared:g} frames per second that it declares: re-encode the video"
            )
        return declared, None
    if not packets.in_order:
        raise MediaError(f"{file.name}: the times of its frames cannot be trusted: they go back: re-encode the video")
    intervals = len(moments) - 1
    fps = declared if not seconds or abs(declared * seconds - intervals) <= 1 else intervals / seconds
    return fps, shown_times(moments, fps)
