# SPDX-License-Identifier: Apache-2.0
"""A PyAV reader of video frames for qwen-vl-utils.

qwen-vl-utils decides how many frames are taken and how large they are. One of its readers is unmaintained, the others
need builds of torchvision or torchcodec that match torch; PyAV brings its own FFmpeg. A reader that the user forces
with `FORCE_QWENVL_VIDEO_READER` still reads local files.

Index i of a video is the i-th frame shown, even with a variable frame rate: the result of decoding everything and
counting. A long file is read by seeking to the key frame before each wanted frame, as long as the timestamps of its
packets prove the index of a frame. Probing and decoding a file together may take `VERL_P2R_MEDIA_TIMEOUT` seconds (60
by default). Frames are resized as they are decoded, so memory depends on the request and not on the file.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from verl_p2r.media import torchvision_ops
from verl_p2r.media.deadline import Deadline, MediaError
from verl_p2r.media.frame_order import by_seeking, in_order
from verl_p2r.media.images import read_image
from verl_p2r.media.opening import open_video
from verl_p2r.media.plan import frame_size
from verl_p2r.media.probe import probe_file, probe_frame_list
from verl_p2r.media.sampling import check_taken, sample_frames, video_metadata
from verl_p2r.media.source import MediaFile, name_of, resolve
from verl_p2r.media.source import local_path as local_path

if TYPE_CHECKING:
    from verl_p2r.media.frame_cache import FrameCache

READER = "pyav"

torchvision_ops.qwen()  # the import takes seconds, which should not count toward the deadline of a file
DENSE = 8  # if at least every eighth frame is wanted, decoding in order is as fast as seeking

SizeRule = Callable[[int, int], tuple[int, int]]  # height and width of a decoded frame -> of the resized frame


def install_reader() -> None:
    """Register the PyAV reader with qwen-vl-utils, as the default unless the user forces another one. Idempotent."""
    forced = os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", READER)
    qwen = torchvision_ops.qwen()
    qwen.VIDEO_READER_BACKENDS[READER] = read_video
    if forced == READER:
        # When a reader fails, qwen-vl-utils falls back to torchvision's, which is gone; that error would hide ours.
        qwen.VIDEO_READER_BACKENDS["torchvision"] = read_video
        if qwen.FORCE_QWENVL_VIDEO_READER != READER:
            qwen.FORCE_QWENVL_VIDEO_READER = READER
            qwen.get_video_reader_backend.cache_clear()


def read_video(element: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Decode the frames that qwen-vl-utils' sampling rules select; a reader for its `VIDEO_READER_BACKENDS`.

    Args:
        element: a video element of a message: `video` (path or `file://` URL) and the fields that
            `sampling.sample_frames` reads.

    Returns:
        Frames, upright, shape (T, 3, H, W), uint8; metadata with `fps` (of the file), `frames_indices`,
        `total_num_frames`, `video_backend`, see `sampling.video_metadata`; and the sampled frames per second.

    Raises:
        MediaError: the file cannot be read, is too short for the rules, or a frame wanted is not decodable.
    """
    return _read(element, None)


def fetch_video(element: Mapping[str, Any], patch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read a video as qwen-vl-utils' `fetch_video` does, as bytes instead of floats.

    Frames are resized in the fixed-point arithmetic that Pillow uses for images, in a tenth of the time of
    qwen-vl-utils' floats. On natural frames most pixels are equal, and the others differ by one or two of 255
    levels. [ours]

    Args:
        element: a canonical video element, with the fields that `plan.plan_video` reads.
        patch_size: patch size of the model's processor, in pixels.

    Returns:
        Frames, shape (T, 3, height, width), uint8; and metadata as from `read_video`.

    Raises:
        MediaError: the file cannot be read, or its rules cannot be met.
    """
    install_reader()
    qwen = torchvision_ops.qwen()
    reader = qwen.VIDEO_READER_BACKENDS[qwen.get_video_reader_backend()]
    if reader is read_video or not isinstance(element["video"], str):
        video, metadata, _ = _read(element, patch_size)
        return video, metadata
    video, metadata, _ = reader(dict(element))
    size = frame_size(element, len(video), (video.shape[-2], video.shape[-1]), patch_size)
    return torchvision_ops.resize(video, *size), metadata


def cached_video(
    element: Mapping[str, Any], patch_size: int, cache: "FrameCache | None"
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Take a video from a cache, or read it by `fetch_video` and keep it there.

    Args:
        element: as for `fetch_video`. A video that has no key, such as one behind a URL, is read each time.
        patch_size: as for `fetch_video`.
        cache: the cache; None without one.

    Returns:
        As `fetch_video`.

    Raises:
        MediaError: as `fetch_video`.
    """
    key = None
    if cache:
        with suppress(OSError, TypeError, ValueError):  # for a missing file the reader has the better message
            key = cache.key(element, patch_size)
    if cache and key and (found := cache.get(key)) is not None:
        return found
    frames, metadata = fetch_video(element, patch_size)
    if cache and key:
        cache.put(key, frames, metadata)
    return frames, metadata


def decode_chosen(
    element: Mapping[str, Any], choose: Callable[[Sequence[int]], Sequence[int]], resized: SizeRule | None
) -> tuple[np.ndarray, list[float]]:
    """Decode some of the frames that an element selects.

    Args:
        element: a canonical video element.
        choose: picks some of the selected indices.
        resized: size of the resized frames; None keeps the size in the file.

    Returns:
        The frames, shape (T, H, W, 3), uint8; and the time of each, in seconds.

    Raises:
        MediaError: the file cannot be read, or its rules cannot be met.
    """
    video = _Video(element)
    indices, total, sampled_fps = video.sample()
    chosen = choose(indices)
    metadata = video_metadata(video.info, chosen, total, sampled_fps)
    seconds = [index / metadata["fps"] for index in metadata["frames_indices"]]
    return video.decode(chosen, resized), seconds


def _read(element: Mapping[str, Any], patch_size: int | None) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Probe, sample and decode a video; resize its frames if there is a patch size."""
    video = _Video(element)
    indices, total, sampled_fps = video.sample()
    resized: SizeRule | None = None
    if patch_size is not None:
        resized = lambda height, width: frame_size(element, len(indices), (height, width), patch_size)  # noqa: E731
    frames = torch.from_numpy(video.decode(indices, resized)).permute(0, 3, 1, 2)
    metadata = {**video_metadata(video.info, indices, total, sampled_fps), "video_backend": READER}
    return frames, metadata, sampled_fps


class _Video:
    """A probed video, a file or a list of frames, which is decoded within the same deadline."""

    def __init__(self, element: Mapping[str, Any]):
        self.element, self.deadline = element, Deadline(name_of(element))
        source = element["video"]
        self.frames = source if isinstance(source, list | tuple) else None
        if self.frames is not None:
            self.info = probe_frame_list(element, self.deadline)
            return
        self.file = resolve(source, element, self.deadline)
        if not isinstance(self.file, MediaFile):
            raise MediaError(f"{self.deadline.name}: a picture is not a video: give a list of them")
        self.info = probe_file(self.file)

    def sample(self) -> tuple[tuple[int, ...], int, float]:
        return sample_frames(self.element, self.info)

    def decode(self, indices: Sequence[int], resized: SizeRule | None) -> np.ndarray:
        if self.frames is None:
            return _decode(self.file, indices, resized)
        frames = _Frames(self.deadline.name, indices, resized)
        for place, index in enumerate(indices):
            image = read_image({**self.element, "image": self.frames[index]}, self.deadline)
            frames.put([place], np.array(image))  # a copy: PyTorch warns of arrays that it cannot write
        return frames.array


def decode_frames(path: str | bytes, indices: Sequence[int], resized: SizeRule | None = None) -> np.ndarray:
    """Decode some frames of a file; memory holds them and a few more, however long the file is.

    Args:
        path: path of a video file, or its bytes.
        indices: indices of the frames, ascending; repetitions are allowed.
        resized: size of the resized frames; None keeps the size in the file.

    Returns:
        The frames, upright. Shape: (T, H, W, 3), uint8, RGB.

    Raises:
        MediaError: naming the first frame that cannot be decoded.
    """
    return _decode(MediaFile.of(path), indices, resized)


def _decode(file: MediaFile, indices: Sequence[int], resized: SizeRule | None) -> np.ndarray:
    frames = _Frames(file.name, indices, resized)
    if indices[-1] >= DENSE * len(indices):
        with open_video(file) as (container, stream):
            frames.take(by_seeking(container, stream, frames.wanted, file.deadline))
    if frames.missing:
        with open_video(file) as (container, stream):
            frames.take(in_order(container, stream, frames.wanted, file.deadline))
    if frames.missing:
        raise MediaError(f"{file.name}: frame {frames.missing[0]} cannot be decoded: the file is truncated or corrupt")
    return frames.array


class _Frames:
    """The wanted frames of a file, resized and stored as they are decoded."""

    def __init__(self, name: str, indices: Sequence[int], resized: SizeRule | None):
        self.name, self.indices, self.resized = name, indices, resized
        self.wanted = sorted(set(indices))
        self.array = np.empty((0, 0, 0, 3), np.uint8)
        self._shape: tuple[int, ...] = ()  # shape of the decoded pictures
        self._found: set[int] = set()
        self._to_rgb = VideoReformatter()  # shared by all frames: its setup takes longer than a frame

    @property
    def missing(self) -> list[int]:
        return [index for index in self.wanted if index not in self._found]

    def take(self, frames: Iterator[tuple[int, av.VideoFrame]]) -> None:
        """Keep the wanted frames, up to the first damaged one."""
        try:
            for index, frame in frames:
                rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                picture = np.rot90(rgb, round(frame.rotation / 90))
                self.put([i for i, wanted in enumerate(self.indices) if wanted == index], picture)
                self._found.add(index)
        except av.error.ExitError:  # the time is up
            raise
        except av.error.FFmpegError:
            pass

    def put(self, places: Sequence[int], picture: np.ndarray) -> None:
        """Put a picture, shape (H, W, 3), in its places."""
        if not self._shape:
            self._shape = picture.shape
            size = self.resized(*picture.shape[:2]) if self.resized else picture.shape[:2]
            check_taken({"video": self.name}, len(self.indices), *size)
            self.array = np.empty((len(self.indices), *size, 3), np.uint8)
        if picture.shape != self._shape:
            at = self.indices[places[0]]
            raise MediaError(f"{self.name}: the size of the picture changes, at frame {at}: re-encode the video")
        if self.resized:
            frame = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
            picture = torchvision_ops.resize(frame, *self.array.shape[1:3])[0].permute(1, 2, 0).numpy()
        self.array[places] = picture
