# SPDX-License-Identifier: Apache-2.0
"""What the containers of videos and images tell: all that screening looks at."""

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import add
from typing import Any, NamedTuple

import av
import numpy as np

from verl_p2r.media.containers import MAX_FRAMES, Mp4Index, holds_zeros, inspect_container
from verl_p2r.media.images import probe_image
from verl_p2r.media.opening import open_video
from verl_p2r.media.sampling import FRAME_LIST_FPS, VideoInfo, checked, shown_times
from verl_p2r.media.source import TIMEOUT_VARIABLE as TIMEOUT_VARIABLE
from verl_p2r.media.source import Deadline, MediaError, MediaFile, kind_of, name_of, resolve

CHECK_EVERY = 4096  # entries of an index between two looks at the clock
ENDLESS = ("mpegts", "mpeg", "asf", "ogg", "flv", "rm")  # containers that do not tell where they end
TAIL = 1 << 26  # bytes of packets that are kept to be decoded at the end of such a file
AGREEMENT = 0.05  # by how much the rate of the frames may differ from the declared one where some have no times


def probe_element(element: Mapping[str, Any]) -> VideoInfo | tuple[int, int]:
    """Look at an element's medium: whether it can be used, and what its sizes follow from.

    Args:
        element: a canonical element; see `media_source`.

    Returns:
        Of a video its `VideoInfo`, of a list of frames one with their number and `sample_fps`; of an image its height
        and width, upright, in pixels.

    Raises:
        MediaError: the medium is missing, not one, cut off, too large, or slower than the deadline.
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
    """Ask a container for its video; a path or the bytes of a file. See `probe_file`."""
    return probe_file(MediaFile.of(path))


def probe_file(file: MediaFile) -> VideoInfo:
    """Ask a container for its video.

    Its first frame is decoded only where nothing else tells whether the picture is turned: not for an upright mp4. An
    mp4 whose first or last packet holds nothing but zeros, as an unfinished download leaves it, is refused.

    Returns:
        The number of frames is the container's own where it has one, else all packets are counted, and the frame rate
        is what they show where that is not the one declared. Where a frame is shown half a frame or more away from
        its place at that rate, the times of all frames come with it. A container without times (AVI, elementary
        streams) shows its frames evenly at the rate it declares.

    Raises:
        MediaError: the file is missing, no container of a known format, cut off, without video frames, with times that
            contradict each other, or too slow.
    """
    index = inspect_container(file)
    # Told to decode nothing, FFmpeg opens a file in a quarter of the time; what it then cannot tell is asked below.
    with open_video(file, None if index is None else "mov", skip_frame="all") as (container, stream):
        table = _read_table(container, stream, file)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        total, times = 0, None
        if stream.frames and index is not None:
            known, times = _times_in(index, table, fps)
            # A file cut out of a stream may begin between key frames: what cannot be decoded does not count.
            total = len(table.shown) if known and table.starts_with_key else 0
            if total and fps > 0 and stream.width and index.upright:
                if holds_zeros(file, table.ends):
                    raise MediaError(f"{file.name}: the file holds zeros for video: it was not written to its end")
                return VideoInfo(total, _rate(times, fps), stream.height, stream.width, times)
        elif "avi" in container.format.name and stream.frames == table.entries and not table.gaps:
            total = stream.frames
        frame, packets = _first_frame(container, stream, file, count=not total)
        if not total:
            last = max(packets.times, default=0) * float(stream.time_base) * fps
            if "avi" in container.format.name and table.entries < packets.total and round(last) + 1 < stream.frames:
                raise MediaError(f"{file.name}: the file is truncated: {packets.total} of {stream.frames} frames")
            _read_table(container, stream, file)  # of fragments, which tell their frames as they come
            if container.format.name in ENDLESS:
                packets = _without_cut_end(packets, stream, file)
            total = packets.total
            fps, times = _measured(packets, float(stream.time_base), fps, file)
    if frame is None or fps <= 0 or not total:
        raise MediaError(f"{file.name}: the file has no video frames")
    upright = (frame.width, frame.height) if round(frame.rotation / 90) % 2 else (frame.height, frame.width)
    return VideoInfo(total, _rate(times, fps), *upright, times)


def probe_frame_list(element: Mapping[str, Any], deadline: Deadline) -> VideoInfo:
    """A list of frames: each is looked at as an image, and all must have one size."""
    frames = element["video"]
    rules = checked({"video": frames, "sample_fps": element.get("sample_fps")})  # all that the outcome depends on
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
        entries: how many there are.
        shown: the positions in the index of those that are shown.
        ends: where the first and the last of these lie: position and size in bytes.
        starts_with_key: the first entry is a key frame.
        gaps: an entry is empty, which shows the frame before it for longer.
    """

    entries: int
    shown: Sequence[int]
    ends: Sequence[tuple[int, int]]
    starts_with_key: bool
    gaps: bool


def _read_table(container: Any, stream: Any, file: MediaFile) -> _Table:
    """Read the index that FFmpeg has of a stream.

    Raises:
        MediaError: it is larger than a file may have it, or leads beyond the end of the file.
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
    """Whether an mp4's index tells when its frames are shown; and when, where they do not come evenly."""
    if index.times is None or fps <= 0:
        return False, None
    stored = index.times / index.timescale
    if shown_times(np.sort(stored), fps) is None:
        return True, None  # of all samples: then also of those that an edit list shows
    if len(stored) != table.entries or not table.shown:
        return False, None
    whole = len(table.shown) == table.entries
    end = stored.min() + index.duration / index.timescale if whole else None
    return True, shown_times(np.sort(stored[np.asarray(table.shown)]), fps, end)


def _rate(times: array | None, fps: float) -> float:
    return fps if times is None else (len(times) - 1) / times[-1]


class _Packets(NamedTuple):
    """What the packets of a stream show.

    Args:
        total: how many are shown.
        times: of these, where they have one, as stored; in units of the stream.
        in_order: key frames come in the order of their times.
        tail: those from the last key frame on; none where they are too many.
    """

    total: int
    times: array
    in_order: bool
    tail: Sequence[Any]


def _first_frame(container: Any, stream: Any, file: MediaFile, count: bool) -> tuple[av.VideoFrame | None, _Packets]:
    """Decode the first frame; with `count` read all packets for the times of what they show."""
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.thread_count = 1
    frame, times, decodable, total, in_order, key_time = None, array("q"), False, 0, True, None
    tail: list[Any] = []
    size = 0  # of the tail
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
            frame = next(iter(stream.codec_context.decode(None)), None)  # else the decoder waits for more packets
            stream.codec_context.flush_buffers()
        if frame and not count:
            break
    return frame, _Packets(total, times, in_order, tail if size <= TAIL else [])


def _without_cut_end(packets: _Packets, stream: Any, file: MediaFile) -> _Packets:
    """Leave out frames behind the last key frame that do not decode, as the last one of a file that was cut off."""
    shown = [packet.pts for packet in packets.tail if packet.size and not packet.is_discard]
    if not shown or None in shown or len(packets.times) < packets.total:
        return packets
    stream.codec_context.flush_buffers()
    decoded = set()
    with suppress(av.error.InvalidDataError):  # where decoding in order ends, too
        for packet in packets.tail:
            file.deadline.check()
            decoded |= {frame.pts for frame in packet.decode()}
    lost = {pts for pts in shown if pts >= shown[0]} - decoded  # frames shown before the key frame need others
    times = array("q", [pts for pts in packets.times if pts not in lost])
    return packets._replace(total=len(times), times=times)


def _measured(packets: _Packets, time_base: float, declared: float, file: MediaFile) -> tuple[float, array | None]:
    """Frames per second, and when frames are shown where they do not come evenly.

    Raises:
        MediaError: the times contradict each other.
    """
    moments = np.sort(np.asarray(packets.times, np.float64)) * time_base
    if not len(moments):
        return declared, None
    seconds = moments[-1] - moments[0]
    if len(moments) < packets.total:  # some have none: then all come evenly, if that fits
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
