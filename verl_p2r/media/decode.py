# SPDX-License-Identifier: Apache-2.0
"""Reading frames: a PyAV reader behind qwen-vl-utils.

qwen-vl-utils decides how many frames and what sizes; of its readers, one is unmaintained and the others need builds of
torchvision or torchcodec that match torch. PyAV carries its own FFmpeg. A reader the user forces with
`FORCE_QWENVL_VIDEO_READER` stays in force for local files.

Index i of a video is the i-th frame that is shown, also where the frame rate varies: what decoding all in order and
counting gives. A long file is read by seeking to the key frame before each wanted frame, as long as the timestamps of
its packets prove which index a frame has. Probing and decoding a file together must not take longer than
`VERL_P2R_MEDIA_TIMEOUT` seconds (by default 60). Frames are resized as they are decoded, so that memory holds what was
asked for and not what the file declares.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from verl_p2r.media import torchvision_ops
from verl_p2r.media.frame_order import by_seeking, in_order
from verl_p2r.media.images import read_image
from verl_p2r.media.opening import open_video
from verl_p2r.media.plan import frame_size
from verl_p2r.media.probe import probe_file, probe_frame_list
from verl_p2r.media.sampling import check_taken, sample_frames, video_metadata
from verl_p2r.media.source import Deadline, MediaError, MediaFile, name_of, resolve
from verl_p2r.media.source import local_path as local_path

READER = "pyav"

torchvision_ops.qwen()  # importing it takes seconds, which no file's deadline should lose
DENSE = 8  # with a frame wanted in so many, decoding in order is as fast as seeking

SizeRule = Callable[[int, int], tuple[int, int]]  # height and width of a decoded frame -> those it is resized to


def install_reader() -> None:
    """Offer the PyAV reader to qwen-vl-utils, and make it the default unless the user forces another. Idempotent."""
    forced = os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", READER)
    qwen = torchvision_ops.qwen()
    qwen.VIDEO_READER_BACKENDS[READER] = read_video
    if forced == READER:
        # When a reader fails, qwen-vl-utils turns to torchvision's, which is gone: its error would hide ours.
        qwen.VIDEO_READER_BACKENDS["torchvision"] = read_video
        if qwen.FORCE_QWENVL_VIDEO_READER != READER:
            qwen.FORCE_QWENVL_VIDEO_READER = READER
            qwen.get_video_reader_backend.cache_clear()


def read_video(element: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Decode the frames that qwen-vl-utils' sampling rules ask for; a reader for its `VIDEO_READER_BACKENDS`.

    Args:
        element: a video element of a message: `video` (path or `file://` URL) and what `sampling.sample_frames` reads.

    Returns:
        Frames, upright, shape (T, 3, H, W), uint8; metadata with `fps` (of the file), `frames_indices`,
        `total_num_frames`, `video_backend`, see `sampling.video_metadata`; and the sampled frames per second.

    Raises:
        MediaError: the file cannot be read, is too short for the rules, or a frame wanted is not decodable.
    """
    return _read(element, None)


def fetch_video(element: Mapping[str, Any], patch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read a video as qwen-vl-utils' `fetch_video` does, in bytes instead of floats.

    Frames are resized in the fixed-point arithmetic that Pillow gives images, a tenth of the time of qwen-vl-utils'
    floats; on natural frames most pixels are the same, and the others differ by one or two of 255 levels. [ours]

    Args:
        element: a canonical video element, and what `media.plan_video` reads.
        patch_size: of the model's processor, in pixels.

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


def decode_chosen(
    element: Mapping[str, Any], choose: Callable[[Sequence[int]], Sequence[int]], resized: SizeRule | None
) -> tuple[np.ndarray, list[float]]:
    """Decode some of the frames that an element takes.

    Args:
        element: a canonical video element.
        choose: which of the frames taken, given as indices.
        resized: what size frames get as they are decoded; None for that of the file.

    Returns:
        The frames, shape (T, H, W, 3), uint8; and when each is shown, in seconds.

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
    """Probe, sample and decode a video; resize its frames where a patch size is given."""
    video = _Video(element)
    indices, total, sampled_fps = video.sample()
    resized: SizeRule | None = None
    if patch_size is not None:
        resized = lambda height, width: frame_size(element, len(indices), (height, width), patch_size)  # noqa: E731
    frames = torch.from_numpy(video.decode(indices, resized)).permute(0, 3, 1, 2)
    metadata = {**video_metadata(video.info, indices, total, sampled_fps), "video_backend": READER}
    return frames, metadata, sampled_fps


class _Video:
    """A video that was probed, to be decoded within the same deadline: a file, or a list of frames."""

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
    """Decode some frames of a file; memory holds them and a few more, whatever the length of the file.

    Args:
        path: of a video file, or its bytes.
        indices: of the frames, ascending; one may be wanted more than once.
        resized: what size frames get as they are decoded; None for that of the file.

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
    """The frames wanted of a file, resized and filled in as they are decoded."""

    def __init__(self, name: str, indices: Sequence[int], resized: SizeRule | None):
        self.name, self.indices, self.resized = name, indices, resized
        self.wanted = sorted(set(indices))
        self.array = np.empty((0, 0, 0, 3), np.uint8)
        self._shape: tuple[int, ...] = ()  # of the pictures as they are decoded
        self._found: set[int] = set()
        self._to_rgb = VideoReformatter()  # one for all frames: setting it up takes longer than a frame

    @property
    def missing(self) -> list[int]:
        return [index for index in self.wanted if index not in self._found]

    def take(self, frames: Iterator[tuple[int, av.VideoFrame]]) -> None:
        """Keep the frames that are wanted, up to the first damage."""
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
