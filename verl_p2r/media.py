# SPDX-License-Identifier: Apache-2.0
"""Reading video files: a PyAV reader behind qwen-vl-utils, and a probe that says early what cannot be read.

qwen-vl-utils decides how many frames and what sizes; of its readers, one is unmaintained and the others need builds of
torchvision or torchcodec that match torch. PyAV carries its own FFmpeg. A reader the user forces with
`FORCE_QWENVL_VIDEO_READER` stays in force.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

READER = "pyav"


class MediaError(ValueError):
    """A media file that cannot be used; the message names the file and the reason."""


def install_reader() -> None:
    """Offer the PyAV reader to qwen-vl-utils, and make it the default unless the user forces another. Idempotent."""
    forced = os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", READER)
    from qwen_vl_utils import vision_process

    vision_process.VIDEO_READER_BACKENDS[READER] = read_video
    if forced == READER:
        # When a reader fails, qwen-vl-utils turns to torchvision's, which is gone: its error would hide ours.
        vision_process.VIDEO_READER_BACKENDS["torchvision"] = read_video
        vision_process.FORCE_QWENVL_VIDEO_READER = READER
        vision_process.get_video_reader_backend.cache_clear()


def read_video(element: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Decode the frames that qwen-vl-utils' sampling rules ask for; a reader for its `VIDEO_READER_BACKENDS`.

    Memory holds the sampled frames and one more, whatever the length of the file.

    Args:
        element: a video element of a message: `video` (path or `file://` URL) and the sampling rules `fps`, `nframes`,
            `min_frames`, `max_frames`, `video_start`, `video_end` (seconds).

    Returns:
        Frames, shape (T, 3, H, W), uint8; metadata with `fps` (of the file), `frames_indices`, `total_num_frames`,
        `video_backend`; and the sampled frames per second.

    Raises:
        MediaError: the file is missing, holds no video, is too short for the rules, or a frame wanted is not decodable.
    """
    path = local_path(element["video"])
    indices, total, fps = plan_frames(element)
    wanted, frames = set(indices), {}
    with suppress(av.error.FFmpegError), av.open(path) as container:  # what it leaves undecoded is reported below
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frames[index] = frame.to_ndarray(format="rgb24")
            if index >= indices[-1]:
                break
    missing = sorted(wanted - frames.keys())
    if missing:
        raise MediaError(f"{path}: frame {missing[0]} of {total} cannot be decoded: the file is truncated or corrupt")
    video = torch.from_numpy(np.stack([frames[i] for i in indices])).permute(0, 3, 1, 2)
    metadata = {"fps": fps, "frames_indices": indices, "total_num_frames": total, "video_backend": READER}
    return video, metadata, len(indices) / total * fps


def plan_frames(element: Mapping[str, Any]) -> tuple[list[int], int, float]:
    """The frames that qwen-vl-utils' sampling rules ask for, without decoding any.

    Args:
        element: as for `read_video`.

    Returns:
        Indices of the frames; how many frames they were chosen from; frames per second of the file.

    Raises:
        MediaError: the file is missing, holds no video, or cannot satisfy the rules.
    """
    from qwen_vl_utils.vision_process import calculate_video_frame_range, smart_nframes

    path = local_path(element["video"])
    total, fps = probe_video(path)
    try:
        start, end, total = calculate_video_frame_range(dict(element), total, fps)
        count = smart_nframes(dict(element), total_frames=total, video_fps=fps)
    except (AssertionError, ValueError) as error:
        raise MediaError(f"{path}: its sampling rules cannot be met: {error}") from error
    return torch.linspace(start, end, count).round().long().tolist(), total, fps


def probe_video(path: str) -> tuple[int, float]:
    """Frame count and frames per second of a file, from its container where that says, else by counting packets.

    Raises:
        MediaError: the file is missing, no container PyAV can open, cut off, or without video frames.
    """
    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file (videos are read from local paths)")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: the file has no video stream")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            size = container.size
            total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be opened as a video ({error})") from error
    if end > size:
        raise MediaError(f"{path}: the file is truncated: it has {size} of at least {end} bytes")
    if total <= 0 or fps <= 0:
        raise MediaError(f"{path}: the file has no video frames")
    return total, fps


def check_video(element: Mapping[str, Any]) -> None:
    """Apply the sampling rules to a video and decode its first frame.

    Args:
        element: as for `read_video`.

    Raises:
        MediaError: naming the file and the reason.
    """
    path = local_path(element["video"])
    plan_frames(element)
    try:
        with av.open(path) as container:
            next(container.decode(video=0))
    except (av.error.FFmpegError, StopIteration) as error:
        raise MediaError(f"{path}: its first frame cannot be decoded ({str(error) or 'no frame'})") from error


def check_image(element: Mapping[str, Any]) -> None:
    """Open an image file and read its header.

    Args:
        element: an image element of a message: `image` is a path or `file://` URL.

    Raises:
        MediaError: naming the file and the reason.
    """
    path = local_path(element["image"])
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError) as error:
        raise MediaError(f"{path}: cannot be opened as an image ({error})") from error


def local_path(source: str) -> str:
    """A file's path without the `file://` that qwen-vl-utils allows.

    >>> local_path("file:///data/a.mp4")
    '/data/a.mp4'
    """
    return source.removeprefix("file://")
