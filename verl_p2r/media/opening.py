# SPDX-License-Identifier: Apache-2.0
"""Opening a video: one of the known containers, from a regular file or from memory, and nothing that it refers to."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
from av.stream import Disposition

from verl_p2r.media.source import MediaError, MediaFile

# FFmpeg's names of real containers. Playlists, scripts and devices are not among them: they name other files.
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
MAX_FRAME_PIXELS = 35_651_584  # that a frame may declare: the most of level 6 of H.264 and HEVC, 8192 x 4352


@contextmanager
def open_video(file: MediaFile, form: str | None = None, **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a file that holds video, until its deadline; FFmpeg's errors become ours.

    Args:
        file: its path or bytes.
        form: FFmpeg's name of its container where that is known, which saves FFmpeg the search for it.
        **options: FFmpeg's, of the container and its streams.

    Yields:
        The container, and its first video stream, cover pictures left out.

    Raises:
        MediaError: the file is missing, no container of a known format, without a video stream, of frames that are too
            large, or too slow.
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
            streams[0].codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # the decoder may find others
            yield container, streams[0]
    except av.error.ExitError as error:  # the interrupted wait for the disk
        raise file.deadline.error from error
    except av.error.ArgumentError as error:
        raise MediaError(
            f"{file.name}: cannot be read as a video: it is not of a known format ({error}); playlists and scripts "
            "are not opened"
        ) from error
    except (av.error.FFmpegError, UnicodeError) as error:
        raise MediaError(f"{file.name}: cannot be read as a video ({error})") from error
