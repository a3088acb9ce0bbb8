# SPDX-License-Identifier: Apache-2.0
"""Reading frames: a PyAV reader behind qwen-vl-utils.

qwen-vl-utils decides how many frames and what sizes; of its readers, one is unmaintained and the others need builds of
torchvision or torchcodec that match torch. PyAV carries its own FFmpeg. A reader the user forces with
`FORCE_QWENVL_VIDEO_READER` stays in force.

Index i of a video is the i-th frame that is shown, also where the frame rate varies: what decoding all in order and
counting gives. A long file is read by seeking to the key frame before each wanted frame, as long as the timestamps of
its packets prove which index a frame has. A file must be read within `VERL_P2R_MEDIA_TIMEOUT` seconds (by default 60).
"""

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from verl_p2r.media import MediaError, frame_size, sample_frames
from verl_p2r.probe import open_video, probe_video

READER = "pyav"
DENSE = 8  # with a frame wanted in so many, decoding in order is as fast as seeking
THREADS = min(4, os.cpu_count() or 1)  # of one decoder; many files are decoded at once
WORTH_A_SEEK = 16  # frames that a seek must leave out; the decoder's threads start anew after it


def install_reader() -> None:
    """Offer the PyAV reader to qwen-vl-utils, and make it the default unless the user forces another. Idempotent."""
    forced = os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", READER)
    from qwen_vl_utils import vision_process

    vision_process.VIDEO_READER_BACKENDS[READER] = read_video
    if forced == READER:
        # When a reader fails, qwen-vl-utils turns to torchvision's, which is gone: its error would hide ours.
        vision_process.VIDEO_READER_BACKENDS["torchvision"] = read_video
        if vision_process.FORCE_QWENVL_VIDEO_READER != READER:
            vision_process.FORCE_QWENVL_VIDEO_READER = READER
            vision_process.get_video_reader_backend.cache_clear()


def read_video(element: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Decode the frames that qwen-vl-utils' sampling rules ask for; a reader for its `VIDEO_READER_BACKENDS`.

    Args:
        element: a video element of a message: `video` (path or `file://` URL) and what `media.sample_frames` reads.

    Returns:
        Frames, upright, shape (T, 3, H, W), uint8; metadata with `fps` (of the file), `frames_indices`,
        `total_num_frames`, `video_backend`; and the sampled frames per second.

    Raises:
        MediaError: the file cannot be read, is too short for the rules, or a frame wanted is not decodable.
    """
    path = local_path(element["video"])
    info = probe_video(path)
    indices, total, sampled_fps = sample_frames({**element, "video": path}, info)
    video = torch.from_numpy(decode_frames(path, indices)).permute(0, 3, 1, 2)
    metadata = {"fps": info.fps, "frames_indices": list(indices), "total_num_frames": total, "video_backend": READER}
    return video, metadata, sampled_fps


def fetch_video(element: Mapping[str, Any], patch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read a video as qwen-vl-utils' `fetch_video` does, in bytes instead of floats.

    Frames are resized in the fixed-point arithmetic that Pillow gives images, a tenth of the time of qwen-vl-utils'
    floats; on natural frames most pixels are the same, and the others differ by one or two of 255 levels. [ours]

    Args:
        element: as for `read_video`, and what `media.plan_video` reads.
        patch_size: of the model's processor, in pixels.

    Returns:
        Frames, shape (T, 3, height, width), uint8; and metadata as from `read_video`.

    Raises:
        MediaError: the file cannot be read, or its rules cannot be met.
    """
    from qwen_vl_utils import vision_process
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    if isinstance(element["video"], list):
        frames = vision_process.fetch_video(dict(element), patch_size, return_video_metadata=True)
        return frames[0].byte(), frames[1]
    read = vision_process.VIDEO_READER_BACKENDS[vision_process.get_video_reader_backend()]
    video, metadata, _ = read(dict(element))
    size = frame_size(element, len(video), (video.shape[-2], video.shape[-1]), patch_size)
    return resize(video, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True), metadata


def decode_frames(path: str, indices: Sequence[int]) -> np.ndarray:
    """Decode some frames of a file; memory holds them and a few more, whatever the length of the file.

    Args:
        path: of a video file.
        indices: of the frames, ascending; one may be wanted more than once.

    Returns:
        The frames, upright. Shape: (T, H, W, 3), uint8, RGB.

    Raises:
        MediaError: naming the first frame that cannot be decoded.
    """
    frames = _Frames(path, indices)
    if indices[-1] >= DENSE * len(indices):
        with open_video(path) as (container, stream, check_time):
            frames.take(_by_seeking(container, stream, frames.wanted, check_time))
    if frames.missing:
        with open_video(path) as (container, stream, check_time):
            frames.take(_in_order(container, stream, frames.wanted, check_time))
    if frames.missing:
        raise MediaError(f"{path}: frame {frames.missing[0]} cannot be decoded: the file is truncated or corrupt")
    return frames.array


def local_path(source: str) -> str:
    """A file's path without the `file://` that qwen-vl-utils allows.

    >>> local_path("file:///data/a.mp4")
    '/data/a.mp4'
    """
    return source.removeprefix("file://")


class _Frames:
    """The frames wanted of a file, filled in as they are decoded."""

    def __init__(self, path: str, indices: Sequence[int]):
        self.path, self.indices = path, indices
        self.wanted = sorted(set(indices))
        self.array = np.empty((0, 0, 0, 3), np.uint8)
        self._found: set[int] = set()
        self._to_rgb = VideoReformatter()  # one for all frames: setting it up takes longer than a frame

    @property
    def missing(self) -> list[int]:
        return [index for index in self.wanted if index not in self._found]

    def take(self, frames: Iterator[tuple[int, av.VideoFrame]]) -> None:
        """Keep the frames that are wanted, up to the first damage."""
        try:
            for index, frame in frames:
                self._put(index, frame)
        except av.error.ExitError:  # the time is up
            raise
        except av.error.FFmpegError:
            pass

    def _put(self, index: int, frame: av.VideoFrame) -> None:
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        picture = np.rot90(rgb, round(frame.rotation / 90))
        if not self.array.size:
            self.array = np.empty((len(self.indices), *picture.shape), np.uint8)
        if picture.shape != self.array.shape[1:]:
            raise MediaError(f"{self.path}: the size of the picture changes, at frame {index}: re-encode the video")
        self.array[[i for i, wanted in enumerate(self.indices) if wanted == index]] = picture
        self._found.add(index)


def _in_order(
    container: Any, stream: Any, wanted: list[int], check_time: Callable[[], None]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the start and count."""
    stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
    ahead = set(wanted)
    for index, frame in enumerate(container.decode(stream)):
        check_time()
        if index in ahead:
            yield index, frame
        if index >= wanted[-1]:
            return


def _by_seeking(
    container: Any, stream: Any, wanted: list[int], check_time: Callable[[], None]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the key frame before each wanted frame; stop at the first doubt about a frame's index."""
    stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
    timeline = _timeline(container, stream, check_time)
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
            check_time()
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


def _timeline(container: Any, stream: Any, check_time: Callable[[], None]) -> _Timeline | None:
    """Read the timestamps of all packets, without decoding; None when they do not prove the order of frames."""
    stored, key_times, doors, sizes = (array("q") for _ in range(4))
    for packet in container.demux(stream):
        check_time()
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
