# SPDX-License-Identifier: Apache-2.0
"""Opens videos: known containers only, from a regular file or from memory, and no files that they refer to."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
from av.stream import Disposition

from verl_p2r.media.deadline import MediaError
from verl_p2r.media.source import MediaFile

# FFmpeg's names of real containers. Playlists, scripts and devices are left out because they name other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "m4v",
    "h264",
    "hevc",
    "flv",
    "ogg",
    "asf",
    "gif",
    "rm",
    "mxf",
    "dv",
    "ivf",
    "wtv",
    "nut",
    "obu",
)
FORMATS = ",".join(CONTAINERS)
MAX_FRAME_PIXELS = 35_651_584  # 8192 x 4352, the maximum of level 6 of H.264 and HEVC


@contextmanager
def open_video(file: MediaFile, form: str | None = None, **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a video file until its deadline, and turn FFmpeg's errors into ours.

    Args:
        file: the file.
        form: FFmpeg's name of its container if known, which saves FFmpeg the search for it.
        **options: FFmpeg options of the container and its streams.

    Yields:
        The container, and its first video stream that is not a cover picture.

    Raises:
        MediaError: the file is missing, too slow, has no video stream or too large frames, or is not a container of a
            known format.
    """
    file.check()
    content = io.BytesIO(file.content) if isinstance(file.content, bytes) else f"file:{file.content}"
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", **options}
    try:
        with av.open(
            content, format=form, timeout=file.deadline.remaining, options=options, metadata_errors="replace"
        ) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{file.name}: the file has no video stream")
            if streams[0].width * streams[0].height > MAX_FRAME_PIXELS:
                raise MediaError(
                    f"{file.name}: frames of {streams[0].width} x {streams[0].height} pixels are larger than "
                    f"{MAX_FRAME_PIXELS} pixels: make them smaller"
                )
            streams[0].codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # the decoder may find larger ones
            yield container, streams[0]
    except av.error.ExitError as error:  # a read was interrupted by the timeout
        raise file.deadline.error from error
    except av.error.ArgumentError as error:
        raise MediaError(
            f"{file.name}: cannot be read as a video: it is not of a known format ({error}); playlists and scripts "
            "are not opened"
        ) from error
    except (av.error.FFmpegError, UnicodeError) as error:
        raise MediaError(f"{file.name}: cannot be read as a video ({error})") from error
