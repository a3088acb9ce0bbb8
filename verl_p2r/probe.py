# SPDX-License-Identifier: Apache-2.0
"""What the container of a video or an image tells, and opening videos with a time-out."""

import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import av
from av.stream import Disposition
from PIL import Image

from verl_p2r.local_files import is_local_file
from verl_p2r.media import MediaError, VideoInfo

TIMEOUT_VARIABLE = "VERL_P2R_MEDIA_TIMEOUT"
TIMEOUT = 60.0  # seconds to read one file, where the variable sets no other


def probe_element(element: Mapping[str, Any]) -> VideoInfo | tuple[int, int]:
    """Look at a canonical element's medium: its `VideoInfo`, or of an image height and width.

    Raises:
        MediaError: it is missing, or cannot be read.
    """
    source = element["video" if "video" in element else "image"]
    if "image" in element:
        return _probe_image(source)
    if isinstance(source, list):
        sizes = [_probe_image(frame) for frame in source]
        return VideoInfo(len(source), float(element.get("sample_fps") or 2.0), *sizes[0])
    return probe_video(source)


def _probe_image(source: str | bytes) -> tuple[int, int]:
    name = source if isinstance(source, str) else f"<{len(source)} bytes>"
    if isinstance(source, str) and not is_local_file(source):
        raise MediaError(f"{name}: cannot be opened as an image (No such file)")
    try:
        with Image.open(source if isinstance(source, str) else BytesIO(source)) as image:
            image.load()
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{name}: cannot be opened as an image ({error})") from error


def probe_video(path: str) -> VideoInfo:
    """Ask a container for its video.

    Its first frame is decoded only where nothing else tells whether the picture is turned: not for an upright mp4. An
    mp4 whose first or last packet holds nothing but zeros, as an unfinished download leaves it, is no video.

    Returns:
        The number of frames is the container's own where it has one, else all packets are counted, and the frame rate
        is what they show where that is not the one declared.

    Raises:
        MediaError: the file is missing, no container PyAV can open, cut off, without video frames, or too slow.
    """
    # Told to decode nothing, FFmpeg opens a file in a quarter of the time; what it then cannot tell is asked below.
    with open_video(path, skip_frame="all") as (container, stream, check_time):
        entries = stream.index_entries
        end = max((entry.pos + entry.size for entry in entries), default=0)
        if end > container.size:
            raise MediaError(f"{path}: the file is truncated: it has {container.size} of at least {end} bytes")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        total = stream.frames
        if total and "mp4" in container.format.name:  # its edit list may hide frames that the header counts
            shown = [entry for entry in entries if not entry.is_discard]
            # A file cut out of a stream may begin between key frames: what cannot be decoded does not count.
            total = len(shown) if entries[0].is_keyframe else 0
            if total and fps > 0 and stream.width and _is_upright_mp4(path):
                if _is_blank(path, shown[0]) or _is_blank(path, shown[-1]):
                    raise MediaError(f"{path}: the file holds zeros for video: it was not written to its end")
                return VideoInfo(total, fps, stream.height, stream.width)
        frame, times = _first_frame(container, stream, check_time, count=not total)
    if not total:
        total, fps = len(times), _measured_rate(times, float(stream.time_base), fps)
    if frame is None or fps <= 0:
        raise MediaError(f"{path}: the file has no video frames")
    upright = (frame.width, frame.height) if round(frame.rotation / 90) % 2 else (frame.height, frame.width)
    return VideoInfo(total, fps, *upright)


def _first_frame(
    container: Any, stream: Any, check_time: Callable[[], None], count: bool
) -> tuple[av.VideoFrame | None, Sequence[int]]:
    """Decode the first frame; with `count` read all packets for the times of what they show."""
    stream.codec_context.skip_frame = "DEFAULT"
    stream.codec_context.thread_count = 1
    frame, times, decodable = None, array("q"), False
    for packet in container.demux(stream):
        check_time()
        decodable |= packet.is_keyframe
        if packet.size and not packet.is_discard and decodable:
            times.append(packet.pts or 0)
        frame = frame or next(iter(packet.decode()), None)
        if not count and not frame and packet.is_keyframe and not packet.is_discard:
            frame = next(iter(stream.codec_context.decode(None)), None)  # else the decoder waits for more packets
            stream.codec_context.flush_buffers()
        if frame and not count:
            break
    return frame, times


def _is_upright_mp4(path: str) -> bool:
    """Whether the header of an mp4 says that no track is turned; FFmpeg tells it only with a decoded frame.

    False where it does not say so plainly: the `moov` box (ISO/IEC 14496-12) holds a matrix for all, in the `mvhd` box,
    and one for each track, in its `tkhd` box; their first, second, fourth and fifth number turn the picture.
    """
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            body = size - 8
            if size == 1:
                body = struct.unpack(">Q", file.read(8))[0] - 16
            if body < 0:
                return False
            if kind == b"moov":
                break
            file.seek(body, os.SEEK_CUR)
        else:
            return False
        header = file.read(body)
    turns = []
    for box, (offset, longer) in {b"mvhd": (36, 48), b"tkhd": (40, 52)}.items():  # version 1 has longer times
        boxes = header.split(box)[1:]
        if not boxes:
            return False
        for content in boxes:
            start = longer if content[:1] == b"\x01" else offset
            matrix = struct.unpack(">9i", content[start : start + 36].ljust(36, b"\0"))
            turns.append((matrix[0], matrix[1], matrix[3], matrix[4]))
    return all(turn == (1 << 16, 0, 0, 1 << 16) for turn in turns)


def _is_blank(path: str, entry: Any) -> bool:
    with open(path, "rb") as file:
        file.seek(entry.pos)
        return not any(file.read(entry.size))


def probe_image(path: str) -> tuple[int, int]:
    """Height and width of an image, in pixels, as qwen-vl-utils sees it: EXIF orientation is not applied.

    Raises:
        MediaError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be opened as an image ({error})") from error


@contextmanager
def open_video(path: str, **options: str) -> Iterator[tuple[Any, Any, Callable[[], None]]]:
    """Open a file that holds video, with a time-out; FFmpeg's errors become ours.

    Args:
        path: of the file.
        **options: FFmpeg's, of the container and its streams.

    Yields:
        The container; its first video stream, cover pictures left out; and a function to call now and then, which
        raises when the time is up. The time is that of the environment variable `VERL_P2R_MEDIA_TIMEOUT`, in seconds,
        by default 60; waiting for the disk counts.

    Raises:
        MediaError: the file is missing, no container PyAV can open, without a video stream, or too slow.
    """
    if isinstance(path, str) and not is_local_file(path):
        raise MediaError(f"{path}: no such file (videos are read from local paths)")
    seconds = _timeout()
    deadline = time.monotonic() + seconds
    late = (
        f"{path}: not read within {seconds:g} s: the file is damaged, too long or on slow storage; drop it, or raise "
        f"{TIMEOUT_VARIABLE}"
    )

    def check_time() -> None:
        if time.monotonic() > deadline:
            raise MediaError(late)

    try:
        with av.open(path, timeout=seconds, options=options) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{path}: the file has no video stream")
            yield container, streams[0], check_time
    except av.error.ExitError as error:  # the interrupted wait for the disk
        raise MediaError(late) from error
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read as a video ({error})") from error


def _timeout() -> float:
    value = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"the environment variable {TIMEOUT_VARIABLE} is {value!r}: give seconds") from None


def _measured_rate(times: Sequence[int], time_base: float, declared: float) -> float:
    """Frames per second: the declared rate unless, over the whole file, it is more than a frame off."""
    seconds = (max(times, default=0) - min(times, default=0)) * time_base
    intervals = len(times) - 1
    return declared if not seconds or abs(declared * seconds - intervals) <= 1 else intervals / seconds
