# SPDX-License-Identifier: Apache-2.0
"""A medium as parts of a chat message: frames sampled and sized as in training, sent as JPEG with their true times."""

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from verl_p2r.media.source import kind_of

if TYPE_CHECKING:
    from verl_p2r.media.frame_cache import FrameCache

VideoAs = Literal["video", "images"]

QUALITY = 95  # JPEG quality at which pixels of natural frames are off by about one level of 255


class MediaParts(NamedTuple):
    """A medium in a request.

    Args:
        parts: parts of the user's message, as in OpenAI's protocol.
        body: further fields of the request, which describe the video.
    """

    parts: list[dict[str, Any]]
    body: dict[str, Any]


def element_parts(
    element: Mapping[str, Any],
    *,
    video_as: VideoAs = "video",
    patch_size: int = 14,
    cache: "FrameCache | None" = None,
) -> MediaParts:
    """Read a medium as parts of a message.

    Args:
        element: a canonical element with its rules, see `source`.
        video_as: `video` makes one part of all frames, which vLLM gives its model as a video with the file's own times.
            `images` makes each frame an image that follows its time in seconds, for servers that accept images only.
        patch_size: patch size of the served model's vision tower, in pixels; sizes are multiples of two patches.
        cache: where decoded frames of videos are kept and looked up; None to decode each time.

    Raises:
        MediaError: the medium is missing or cannot be read; decoders may raise other exceptions on damaged files.
    """
    if kind_of(element) == "image":
        from verl_p2r.media.images import fetch_image  # imports torch, 0.2 GB

        return MediaParts([_image_part(fetch_image(element, patch_size))], {})
    return _video_parts(dict(element), video_as, patch_size, cache)


def _video_parts(element: dict[str, Any], video_as: VideoAs, patch_size: int, cache: "FrameCache | None") -> MediaParts:
    from verl_p2r.media.decode import cached_video  # imports torch, 0.2 GB

    video, metadata = cached_video(element, patch_size, cache)
    frames = video.permute(0, 2, 3, 1).contiguous().numpy()
    indices, fps = metadata["frames_indices"], metadata["fps"]
    if video_as == "images":
        parts: list[dict[str, Any]] = []
        for index, frame in zip(indices, frames, strict=True):
            parts += [{"type": "text", "text": f"<{index / fps:.1f} seconds>"}, _image_part(Image.fromarray(frame))]
        return MediaParts(parts, {})
    url = "data:video/jpeg;base64," + ",".join(_jpeg(Image.fromarray(frame)) for frame in frames)
    total = metadata["total_num_frames"]
    io_kwargs = {"num_frames": -1, "fps": fps, "frames_indices": [int(i) for i in indices]}
    io_kwargs |= {"total_num_frames": total, "duration": total / fps}
    return MediaParts([{"type": "video_url", "video_url": {"url": url}}], {"media_io_kwargs": {"video": io_kwargs}})


def _image_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(image)}"}}


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()
